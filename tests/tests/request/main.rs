//! Requests with a key: to which caller a key belongs, what a retry must repeat, what it gets, and which handlers are
//! possible.
//!
//! The program also contains the tests in `layer`.

mod caller_limit;
mod drop_order;
mod extraction;
mod extraction_runs;
mod fingerprints;
mod forwarded;
pub mod handlers;
mod head_requests;
mod idempotency;
mod identities;
mod in_flight;
mod key_rules;
mod keys;
#[path = "../layer/mod.rs"]
mod layer;
mod limits;
mod policy_expressions;
mod policy_overrides;
mod public_types;
mod raw_requests;
mod recording;
mod rejection_formats;
mod replayed_headers;
mod rustango;
mod security;
mod sensitive_headers;
mod small_chunks;
mod streams;
mod stripe_rejections;
mod targets;
mod testing;
mod trailers;
mod unguarded_bodies;
mod uploads;
mod webhooks;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
