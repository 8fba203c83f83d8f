//! The embedded store: one SQLite file that survives a restart.
//!
//! # Why sqlx
//!
//! A program can link `sqlite3` only once. Applications that keep their own data in SQLite mostly use sqlx. With
//! rusqlite beside it, each update of either would cause a conflict over `links = "sqlite3"`. If a handler's own writes
//! must commit together with its record, its transaction must have the type that its own queries take.
//!
//! # How it writes
//!
//! One thread owns the only connection that writes. It takes the write lock (`BEGIN IMMEDIATE`), applies all writes
//! that were queued meanwhile, commits once, and only then answers. So a commit costs one `fsync` however many requests
//! share it. The thread has a runtime of its own, so a store works for every runtime of the process and ends with its
//! last handle. A reader answers calls that change nothing (a replay, a duplicate in flight). They never wait for the
//! writer.
//!
//! Leases are renewed in a second file, which no handler's transaction locks: see `leases`.
//!
//! The statements decide about leases and expiry by a clock that does not follow changes of the machine's clock: see
//! `clock`. The lease of a process with another clock ends when it was not renewed for as long as it lasts: see
//! `watch`.

pub(crate) mod batch;
pub(crate) mod bound;
pub(crate) mod clock;
pub(crate) mod connections;
pub(crate) mod database_file;
pub(crate) mod erasure;
pub(crate) mod failure;
pub(crate) mod guard;
pub(crate) mod handler_transactions;
pub(crate) mod job;
pub(crate) mod kept;
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
