//! A claim and its lease: while the handler runs, when its process dies, and when the store forgets it.
//!
//! The program runs `disconnect` too.

mod blocked_threads;
mod crashes;
#[path = "../disconnect/mod.rs"]
mod disconnect;
mod endings;
mod forgotten_claims;
mod lapsed_leases;
mod unknown_outcomes;
