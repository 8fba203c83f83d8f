//! The place where claims and records are kept: the traits, their types, and the stores of this crate.
//!
//! | store | use it for | engine |
//! |---|---|---|
//! | `MemoryStore` | tests, one process | in-process, bounded by bytes |
//! | `SqliteStore` | one machine; survives a restart | SQLite in WAL mode, group commit |
//! | `RedisStore` | many processes | Redis 6.2 or Valkey 7.2, or newer; Cluster included; one script for each operation |
//! | `PostgresStore` | many processes | PostgreSQL 13 or newer; takes the application's pool |
//!
//! A store of your own implements [`Store`] and passes [`testing::conformance`](crate::testing::conformance) (feature
//! `testing`). [`guide::writing_a_store`](crate::guide::writing_a_store) has the rules and a complete store.
//!
//! ```text
//! absent ──claim──▶ claimed(token, lease, attempt) ──complete──▶ completed(record) ──ttl──▶ absent
//!    ▲                  │            │
//!    └────release───────┘            └─ lease expired: the next claim with the same fingerprint takes over
//!                                       (attempt + 1) under `AfterCrash::Rerun`, and never under `AfterCrash::Reject`:
//!                                       such a claim has no ttl, until it is completed, released, resolved or purged
//! ```

#[cfg(feature = "__transactions")]
pub(crate) mod active_transactions;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod batch;
#[cfg(feature = "near-cache")]
pub(crate) mod cache;
pub(crate) mod claim;
pub(crate) mod claim_decision;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) mod columns;
pub(crate) mod contract;
pub(crate) mod entry;
pub(crate) mod erased;
pub(crate) mod error;
#[cfg(any(feature = "memory", feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) mod given_back;
pub(crate) mod handle;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod in_clear;
pub(crate) mod line;
#[cfg(feature = "memory")]
pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod resolution;
#[cfg(feature = "__transactions")]
pub(crate) mod row;
mod shared;
mod shortage;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
pub(crate) mod timed;
pub(crate) mod unwanted_claims;

pub use crate::policy::values::AfterCrash;
pub use crate::store::claim::{Claim, ClaimRequest, Held, Owner, Renewal, Token};
pub use crate::store::claim_decision::{Decision, ExistingClaim, StoredState, decide};
pub use crate::store::contract::{ImmediateStore, Store, StoreAdmin};
pub use crate::store::entry::{
    Cursor, DamagedEntry, Entry, EntryState, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes,
};
pub use crate::store::error::StoreError;
#[cfg(feature = "memory")]
pub use crate::store::memory::store::{MemoryStore, MemoryStoreBuilder};
#[cfg(feature = "postgres")]
pub use crate::store::postgres::migrate::PostgresMigrateError;
#[cfg(feature = "postgres")]
pub use crate::store::postgres::open::PostgresStoreBuilder;
#[cfg(feature = "postgres")]
pub use crate::store::postgres::store::PostgresStore;
#[cfg(feature = "redis")]
pub use crate::store::redis::open::RedisStoreBuilder;
#[cfg(feature = "redis")]
pub use crate::store::redis::open_error::RedisOpenError;
#[cfg(feature = "redis")]
pub use crate::store::redis::store::RedisStore;
pub use crate::store::resolution::{Resolution, Resolved};
#[cfg(feature = "sqlite")]
pub use crate::store::sqlite::open::{SqliteStoreBuilder, SqliteSynchronous};
#[cfg(feature = "sqlite")]
pub use crate::store::sqlite::open_error::SqliteOpenError;
#[cfg(feature = "sqlite")]
pub use crate::store::sqlite::store::SqliteStore;
pub use crate::transaction::transactions::Transactions;
