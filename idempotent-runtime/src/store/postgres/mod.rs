//! The store for many processes that already use PostgreSQL.
//!
//! A claim, a renewal, a completion and a release are one statement each, and each statement commits by itself. A first execution
//! needs two statements, a replay needs one. While some statements are under way, the claims, completions and releases of other
//! requests gather, and are sent together as one statement over arrays (`batcher.rs`). Behind a pooler, each statement is a
//! transaction (`pooler.rs`). All statements use `clock_timestamp()`, the clock of the database, for leases and expiry.
//!
//! A handler that takes a [`Tx`](crate::Tx) has no row while it runs. Its claim is a pair of advisory locks in its own transaction.
//! PostgreSQL releases them with the transaction, even if the process crashes. A duplicate tries the locks, fails, and returns its
//! connection at once. A duplicate in the same process takes no connection. A claim without a transaction also tries the lock of
//! the key, in its own statement, before it inserts its row. So two versions of a program exclude each other even if only one of
//! them uses the `Tx`.

pub(crate) mod admin;
pub(crate) mod admin_statements;
pub(crate) mod advisory_locks;
pub(crate) mod batch_statements;
pub(crate) mod batched;
pub(crate) mod batched_claim;
pub(crate) mod batched_end;
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
pub(crate) mod row_changes;
mod silent;
pub(crate) mod spare;
pub(crate) mod statements;
pub(crate) mod store;
pub(crate) mod transactions;
mod waiting;
