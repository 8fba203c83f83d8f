//! Bad requests over a raw socket: the server goes on, says what is wrong, and runs no handler for what it rejects.
//!
//! The generated ones print their seed; `IDEMPOTENT_TEST_SEED=<seed>` sends the same requests again.

mod bodies;
mod charges;
mod cut_off;
mod generated;
mod heads;
mod keys;
