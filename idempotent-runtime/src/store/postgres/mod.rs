//! The store for many processes that have a PostgreSQL already.
//!
//! Claim, renewal, completion and release are one statement each, which commits by itself: a first execution costs two
//! statements, a replay one. While some are under way, those of other requests gather, and go out together as one statement over
//! arrays (`batcher.rs`). Behind a pooler each statement is a transaction (`pooler.rs`). All of them decide about leases and
//! expiry by `clock_timestamp()`, the clock of the database.
//!
//! A handler that takes a [`Tx`](crate::Tx) leaves no row while it runs. Its claim is a pair of advisory locks of its own
//! transaction, which PostgreSQL gives up with the transaction, whatever becomes of the process; a duplicate tries them,
//! fails, and gives its connection back at once. Duplicates in the same process do not even take one. A claim without a
//! transaction tries the lock of the key too, in its own statement, before it inserts its row: two versions of a program, of
//! which one has the `Tx`, exclude each other.

pub(crate) mod admin;
pub(crate) mod admin_statements;
pub(crate) mod advisory_locks;
pub(crate) mod batch_statements;
pub(crate) mod batched_claim;
pub(crate) mod batched_end;
pub(crate) mod batcher;
pub(crate) mod claim;
pub(crate) mod committed;
pub(crate) mod end;
pub(crate) mod expired_deletion;
pub(crate) mod failure;
pub(crate) mod in_clear;
pub(crate) mod in_transaction;
pub(crate) mod inner;
pub(crate) mod listener;
pub(crate) mod migrate;
pub(crate) mod open;
pub(crate) mod own;
pub(crate) mod pooler;
pub(crate) mod pools;
pub(crate) mod record_statement;
pub(crate) mod resolve;
pub(crate) mod retry;
pub(crate) mod row;
mod silent;
pub(crate) mod spare;
pub(crate) mod statements;
pub(crate) mod store;
pub(crate) mod transactions;
mod waiting;
