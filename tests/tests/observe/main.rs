//! What the runtime tells those who run it: metrics, logs and traces, and what the pages make of them.
//!
//! The first guarded request of a process decides whether it has metrics: each test that sends one calls
//! `Exposition::begin` before.

mod exposition;
mod metrics;
mod pages;
mod recorded_traces;
mod telemetry;
mod trace_links;
mod traces;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
