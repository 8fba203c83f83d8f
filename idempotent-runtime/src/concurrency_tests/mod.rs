//! Concurrency tests: the code of this crate itself, run by a checker that chooses which thread or task goes on wherever
//! two of them could meet. `cargo xtask concurrency` runs them; nothing of this is in any other build.
//!
//! Threads, tasks, locks, atomics, `Notify` and channels are those of [shuttle](https://docs.rs/shuttle) and its model of
//! tokio, in place of those of the standard library and tokio ([`crate::sync`]). Time is a [`clock`] that
//! advances only when a proof says so. So a wake-up that is lost is not made up for by any timer: nothing can go on, the checker
//! calls it a deadlock, and the proof fails.
//!
//! What this cannot show: the order in which memory becomes visible (every atomic counts as `SeqCst`), what tokio's own
//! code does, a call of a store that is cut off by its time limit, and the stores that talk to a database.

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
