//! The renewals of leases, in a small file beside the database.
//!
//! SQLite has one write lock for each file. A handler's `Tx`, a crowd of short ones or another program may hold the lock of the
//! database for longer than a lease, and the leases of handlers that run meanwhile must be renewed. So a renewal writes to a
//! file of its own, which no transaction of a handler ever locks.
//!
//! A row of the database has the lease that its claim began with. A row here counts instead of it. Each claim has a number
//! ([`new_id`]) by which the two are matched: one token may claim twice.
//!
//! Two rules keep a handler from running beside another one that took its claim over:
//!
//! 1. Before a claim is taken over, or deleted because it expired, its lease is [fenced](Leases::fence). That fails if the lease
//!    was renewed meanwhile, and no renewal succeeds after it.
//! 2. A renewal reads the row of the database while it holds the write lock of this file. So it finds either the fence, or what
//!    was written under it.
//!
//! Locks are always taken in one order: database, then leases.
//!
//! The database knows its file of leases by name ([`IS_CURRENT`]). If that file was deleted, or not restored with the database,
//! all claims count as renewed when the next process makes a new one. Processes that still have the old file open change to
//! the new one.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::store::claim::Renewal;
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::connections::{Acquired, Connections};
use crate::store::sqlite::failure::store_error;

/// Of in-flight duplicates and operators; each has a thread in sqlx.
const LOOKING: usize = 2;

pub(super) const CREATE: &str = "
CREATE TABLE IF NOT EXISTS idempotency_leases (
    id INTEGER PRIMARY KEY,   -- idempotency_records.lease_id of the claim
    record INTEGER NOT NULL,  -- idempotency_records.id
    token TEXT,               -- of the claim, as there
    lease_until INTEGER,      -- since the last renewal, as the one below; NULL where there was none
    expires_at INTEGER,       -- without regard to a claim that never does
    is_over INTEGER NOT NULL  -- the claim is taken over or deleted: it cannot be renewed any more
) STRICT;
CREATE TABLE IF NOT EXISTS idempotency_leases_file (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL
) STRICT;
INSERT OR IGNORE INTO idempotency_leases_file (id, name) VALUES (1, lower(hex(randomblob(16))));
";

/// Whether this is the file that the database names.
const IS_CURRENT: &str = "SELECT own.name = known.name \
     FROM main.idempotency_leases_file AS own, records.idempotency_leases_file AS known";

// `main` is locked before the snapshot of `records` is taken: SQLite begins transactions in the order of its files.
const RENEW: &str = "\
    INSERT INTO main.idempotency_leases (id, record, token, lease_until, expires_at, is_over) \
    SELECT r.lease_id, r.id, r.token, ?1 + renewal.lease, ?1 + r.claim_ttl, 0 \
    FROM (SELECT value ->> 0 AS key, value ->> 1 AS token, value ->> 2 AS lease FROM json_each(?2)) AS renewal \
    CROSS JOIN records.idempotency_records AS r ON r.key = renewal.key \
    LEFT JOIN main.idempotency_leases AS l ON l.id = r.lease_id \
    WHERE r.token = renewal.token AND r.state = 'claimed' AND r.lease_id IS NOT NULL \
    AND max(r.expires_at, coalesce(l.expires_at, 0)) > ?1 \
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, expires_at = excluded.expires_at WHERE is_over = 0 \
    RETURNING token";

const FENCE: &str = "\
    INSERT INTO main.idempotency_leases (id, record, is_over) SELECT value ->> 0, value ->> 1, 1 FROM json_each(?2) WHERE true \
    ON CONFLICT (id) DO UPDATE SET is_over = 1 WHERE min(coalesce(lease_until, 0), coalesce(expires_at, 0)) <= ?1 \
    RETURNING id";

const ONE: &str = "SELECT json_array(json_array(id, lease_until, expires_at)) AS renewals, is_over \
     FROM main.idempotency_leases WHERE id = ?1";

const ALL: &str = "SELECT json_group_array(json_array(id, lease_until, expires_at)) FROM main.idempotency_leases";

/// Of claims that have ended.
const DELETE_EXPIRED: &str = "DELETE FROM main.idempotency_leases AS l WHERE coalesce(lease_until, 0) <= ?1 AND NOT EXISTS (\
     SELECT 1 FROM records.idempotency_records AS r WHERE r.id = l.record AND r.lease_id = l.id AND r.state = 'claimed')";

/// Renewals as a statement on the database takes them: a JSON list of the number of the claim, the end of its lease, and when
/// it expires.
pub(super) type Renewals = String;

/// No renewals.
pub(super) fn none() -> Renewals {
    "[]".to_owned()
}

/// What this file has of one claim.
pub(super) struct Renewed {
    pub(super) renewals: Renewals,
    /// It cannot be renewed any more.
    pub(super) is_over: bool,
}

/// A claim by its number, in the row with this one.
pub(super) type ClaimId = (i64, i64);

/// The number of a claim, which no other one has.
pub(super) fn new_id() -> i64 {
    RandomState::new().hash_one(0_u8).cast_signed()
}

#[derive(Debug, thiserror::Error)]
#[error("the file of leases beside the database was replaced, and this process cannot open the new one: restart it")]
struct Replaced;

pub(super) struct Leases {
    writing: Connections,
    /// A renewal must not wait for a crowd that looks.
    looking: Connections,
    clock: Clock,
}

impl Leases {
    pub(super) fn new(options: SqliteConnectOptions, database: &str, clock: Clock) -> Self {
        let connections = |options, most| Connections::new(options, most).attaching(database.to_owned());
        Self { writing: connections(options.clone(), 1), looking: connections(options, LOOKING), clock }
    }

    /// Opens the connection that renews. A file that is deleted while processes have it open is still one for all of them.
    pub(super) async fn connect(&self) -> Result<(), StoreError> {
        current(&self.writing).await?.give_back();
        Ok(())
    }

    /// Renews those of these claims that their tokens hold, which are the answer.
    pub(super) async fn renew(&self, renewals: &[Renewal]) -> Result<HashSet<String>, StoreError> {
        let list: Vec<_> = renewals
            .iter()
            .map(|renewal| (renewal.key.as_str(), token_text(renewal.token), span_millis(renewal.lease)))
            .collect();
        let list = serde_json::to_string(&list).map_err(StoreError::unavailable)?;
        let mut acquired = current(&self.writing).await?;
        let renewed = sqlx::query_scalar(RENEW).bind(self.clock.now()).bind(list);
        let renewed: Vec<String> = renewed.fetch_all(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(renewed.into_iter().collect())
    }

    /// Ends the leases of those of these claims, found lapsed or expired at `now`, that were not renewed since: they are the answer.
    pub(super) async fn fence(&self, now: i64, claims: &[ClaimId]) -> Result<HashSet<i64>, StoreError> {
        let list = serde_json::to_string(claims).map_err(StoreError::unavailable)?;
        let mut acquired = current(&self.writing).await?;
        let fenced = sqlx::query_scalar(FENCE).bind(now).bind(list);
        let fenced: Vec<i64> = fenced.fetch_all(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(fenced.into_iter().collect())
    }

    /// A connection on which the database is `records` and this file `main`.
    pub(super) async fn look(&self) -> Result<Acquired<'_>, StoreError> {
        current(&self.looking).await
    }

    /// What this file has of the claim with this number.
    pub(super) async fn of(&self, id: i64) -> Result<Option<Renewed>, StoreError> {
        let mut acquired = self.look().await?;
        let row = sqlx::query(ONE).bind(id).fetch_optional(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(row.map(|row| Renewed { renewals: row.get("renewals"), is_over: row.get("is_over") }))
    }

    /// Of all claims.
    pub(super) async fn all(&self) -> Result<Renewals, StoreError> {
        let mut acquired = self.look().await?;
        let all = sqlx::query_scalar(ALL).fetch_one(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(all)
    }

    /// Deletes what no claim needs any more.
    pub(super) async fn delete_expired(&self) -> Result<(), StoreError> {
        let mut acquired = current(&self.writing).await?;
        sqlx::query(DELETE_EXPIRED).bind(self.clock.now()).execute(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.looking.close().await;
        self.writing.close().await;
    }
}

/// A connection to the file that the database names.
async fn current(connections: &Connections) -> Result<Acquired<'_>, StoreError> {
    for _ in 0..2 {
        let mut acquired = connections.acquire().await?;
        if sqlx::query_scalar(IS_CURRENT).fetch_one(acquired.connection()).await.map_err(store_error)? {
            return Ok(acquired);
        }
    }
    Err(StoreError::unavailable(Replaced))
}
