//! The embedded store: one SQLite file that survives a restart.
//!
//! # Why sqlx
//!
//! A program can link `sqlite3` only once. Applications that keep their own data in SQLite mostly use sqlx, and
//! rusqlite beside it would fight over `links = "sqlite3"` at every update of either. And a handler whose own writes
//! shall commit together with its record needs its transaction to be of the type that its own queries take.
//!
//! # How it writes
//!
//! One thread owns the only connection that writes. It takes the write lock (`BEGIN IMMEDIATE`), applies everything
//! that has queued up meanwhile, commits once, and only then answers: a commit costs one `fsync` however many requests
//! share it. The thread has a runtime of its own, so that a store works for every runtime of the process and ends with
//! its last handle. What changes nothing (a replay, a duplicate in flight) is answered by a reader and never waits for
//! the writer.
//!
//! Leases are renewed in a second file, which no handler's transaction locks: `leases`.
//!
//! The statements decide about leases and expiry by a clock that does not follow when the machine's is set: `clock`. The
//! lease of a process that has another clock ends when it was not renewed for as long as it lasts: `watch`.

pub(crate) mod batch;
pub(crate) mod bound;
pub(crate) mod clock;
pub(crate) mod connections;
pub(crate) mod database_file;
pub(crate) mod failure;
pub(crate) mod guard;
pub(crate) mod handler_transactions;
pub(crate) mod job;
pub(crate) mod leases;
pub(crate) mod leases_file;
pub(crate) mod leases_schema;
pub(crate) mod locked;
pub(crate) mod open;
pub(crate) mod open_error;
pub(crate) mod resolve;
pub(crate) mod row;
pub(crate) mod rows;
pub(crate) mod schema;
pub(crate) mod settings;
pub(crate) mod start;
pub(crate) mod store;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod transactions;
pub(crate) mod upkeep;
pub(crate) mod watch;
pub(crate) mod write_transaction;
pub(crate) mod writer;
pub(crate) mod writes;
