//! Bad requests over a raw socket: the server continues, says what is wrong, and runs no handler for a rejected
//! request.
//!
//! Tests with generated requests print their seed; `IDEMPOTENT_TEST_SEED=<seed>` sends the same requests again.

mod bodies;
mod charges;
mod cut_off;
mod generated;
mod heads;
mod keys;
