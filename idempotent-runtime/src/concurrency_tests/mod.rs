//! Concurrency tests: a checker runs the code of this crate and chooses which thread or task continues wherever two of
//! them could meet. `cargo xtask concurrency` runs them; no other build contains them.
//!
//! Threads, tasks, locks, atomics, `Notify` and channels are those of [shuttle](https://docs.rs/shuttle) and its model
//! of tokio, in place of those of the standard library and tokio ([`crate::sync`]). Time is a [`clock`] that advances
//! only when a test advances it. So no timer hides a lost wake-up: nothing can continue, the checker reports a
//! deadlock, and the test fails.
//!
//! These tests cannot show: the order in which memory becomes visible (every atomic counts as `SeqCst`), the behaviour
//! of tokio's own code, a store call that is cut off by its time limit, and the stores that use a database.

pub(crate) mod bytes;
pub(crate) mod claims;
pub(crate) mod clock;
pub(crate) mod drops;
pub(crate) mod explore;
pub(crate) mod fixtures;
pub(crate) mod handover;
pub(crate) mod lapses;
pub(crate) mod leases;
pub(crate) mod primitives;
pub(crate) mod running_limit;
