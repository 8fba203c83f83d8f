//! The tables and every statement on them.

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments};

/// What this version reads and writes.
pub(super) const VERSION: i64 = 1;

/// Whether this file has been opened by a store before.
pub(super) const EXISTS: &str = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'idempotency_schema'";

pub(super) const STORED_VERSION: &str = "SELECT version FROM idempotency_schema";

/// Changes nothing, but is a write: on a file that cannot be written, `BEGIN IMMEDIATE` alone succeeds.
pub(super) const TOUCH: &str = "UPDATE idempotency_schema SET version = version";

// A table of its own for the version, since `PRAGMA user_version` belongs to the application if the file is its database.
//
// `id` names a damaged row without telling its key. The table has row ids, since rows hold whole bodies: without them
// they would stand in the inner pages of the tree. The body is last, or reading any column after it would walk it.
pub(super) const CREATE: &str = "
CREATE TABLE idempotency_schema (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
) STRICT;
CREATE TABLE idempotency_records (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,    -- scope/@caller/key, percent-encoded
    state TEXT NOT NULL,         -- 'claimed' or 'completed'
    fingerprint TEXT NOT NULL,   -- SHA-256, 64 hexadecimal digits
    token TEXT NOT NULL,         -- of the claim, kept by its record, 32 hexadecimal digits
    attempt INTEGER NOT NULL,    -- 1, and one more for each claim whose lease ran out
    claim_ttl INTEGER NOT NULL,  -- milliseconds; what a renewal adds to now for expires_at
    lease_until INTEGER,         -- milliseconds since 1970 by the store's clock, as all below
    expires_at INTEGER NOT NULL,
    recorded_at INTEGER,
    status INTEGER,
    headers TEXT,                -- JSON
    body BLOB                    -- NULL in a completed row: it was too large to record
) STRICT;
CREATE TABLE idempotency_clock (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot TEXT NOT NULL,          -- the boot of the machine that this holds for
    began_at INTEGER NOT NULL    -- when that boot began, by what the wall clock said at its first opening
) STRICT;
CREATE INDEX idempotency_records_expires_at ON idempotency_records (expires_at);
INSERT INTO idempotency_schema (id, version) VALUES (1, 1);
";

/// What files of version 0.1 lack, which is able to read and write them with it. Changes nothing where it is there.
pub(super) const ADD: &str = "
CREATE INDEX IF NOT EXISTS idempotency_records_lease_until ON idempotency_records (lease_until) WHERE state = 'claimed';
CREATE TABLE IF NOT EXISTS idempotency_lock_time (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    made_up_until INTEGER NOT NULL  -- leases last longer by the long locks of the file until then
) STRICT;
INSERT OR IGNORE INTO idempotency_lock_time (id, made_up_until) VALUES (1, 0);
";

pub(super) const CLOCK: &str = "SELECT began_at FROM idempotency_clock WHERE boot = ?1";

pub(super) const SET_CLOCK: &str = "INSERT OR REPLACE INTO idempotency_clock (id, boot, began_at) VALUES (1, ?1, ?2)";

/// A statement in which ?1 is now.
pub(super) fn at(now: i64, sql: &'static str) -> Query<'static, Sqlite, SqliteArguments> {
    sqlx::query(sql).bind(now)
}

/// What never expires does so at the end of all times: the rows need no column more, and their index finds it.
pub(super) const NEVER: i64 = i64::MAX;

/// [`NEVER`], in a statement.
macro_rules! never {
    () => {
        "9223372036854775807"
    };
}

/// What stands under the key ?2 and is alive.
pub(super) const EXISTING: &str = concat!(
    "SELECT id, state, fingerprint, token, attempt, lease_until > ?1 AS leased, expires_at < ",
    never!(),
    " AS expires, recorded_at, status, headers, body FROM idempotency_records WHERE key = ?2 AND expires_at > ?1"
);

/// Overwrites what [`crate::store::claim_decision::decide`] found expired or lapsed.
pub(super) const CLAIM: &str = "\
    INSERT INTO idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at) \
    VALUES (?2, 'claimed', ?3, ?4, ?5, ?6, ?1 + ?7, ?8) \
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, \
    token = excluded.token, attempt = excluded.attempt, claim_ttl = excluded.claim_ttl, \
    lease_until = excluded.lease_until, expires_at = excluded.expires_at, recorded_at = NULL, status = NULL, \
    headers = NULL, body = NULL";

// In these the token is compared in the same statement: a holder whose claim went to a successor changes nothing.
pub(super) const RENEW: &str = concat!(
    "UPDATE idempotency_records SET lease_until = ?1 + ?4, expires_at = CASE expires_at WHEN ",
    never!(),
    " THEN expires_at ELSE ?1 + claim_ttl END WHERE key = ?2 AND token = ?3 AND state = 'claimed' AND expires_at > ?1"
);

/// [`RENEW`] for a JSON list of key, token and lease; returns the tokens that held their claims.
pub(super) const RENEW_MANY: &str = concat!(
    "UPDATE idempotency_records SET lease_until = ?1 + renewal.lease, expires_at = CASE expires_at WHEN ",
    never!(),
    " THEN expires_at ELSE ?1 + claim_ttl END \
     FROM (SELECT value ->> 0 AS key, value ->> 1 AS token, value ->> 2 AS lease FROM json_each(?2)) AS renewal \
     WHERE idempotency_records.key = renewal.key AND idempotency_records.token = renewal.token \
     AND idempotency_records.state = 'claimed' AND idempotency_records.expires_at > ?1 \
     RETURNING idempotency_records.token"
);

/// Those that were alive at ?1 and end before ?2 last ?3 longer; a claim is remembered for longer than its lease.
pub(super) const EXTEND_LEASES: &str = concat!(
    "UPDATE idempotency_records SET lease_until = lease_until + ?3, expires_at = CASE expires_at WHEN ",
    never!(),
    " THEN expires_at ELSE expires_at + ?3 END WHERE state = 'claimed' AND lease_until > ?1 AND lease_until < ?2"
);

pub(super) const MADE_UP_UNTIL: &str = "SELECT made_up_until FROM idempotency_lock_time";

pub(super) const MAKE_UP_UNTIL: &str = "UPDATE idempotency_lock_time SET made_up_until = ?1";

/// The claim was rejected as one of unknown outcome, and stays so.
pub(super) const KEEP: &str = concat!(
    "UPDATE idempotency_records SET expires_at = ",
    never!(),
    " WHERE key = ?2 AND token = ?3 AND state = 'claimed' AND expires_at > ?1"
);

pub(super) const COMPLETE: &str = "\
    UPDATE idempotency_records SET state = 'completed', lease_until = NULL, expires_at = ?1 + ?4, fingerprint = ?5, \
    recorded_at = ?6, status = ?7, headers = ?8, body = ?9 \
    WHERE key = ?2 AND token = ?3 AND state = 'claimed' AND expires_at > ?1";

/// The record of a claim that lives in a transaction: nothing stands there yet, or what may be taken over.
pub(super) const RECORD: &str = "\
    INSERT INTO idempotency_records AS r (key, state, fingerprint, token, attempt, claim_ttl, expires_at, recorded_at, \
    status, headers, body) VALUES (?2, 'completed', ?3, ?4, 1, ?5, ?1 + ?5, ?6, ?7, ?8, ?9) \
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, token = excluded.token, \
    attempt = CASE WHEN r.expires_at <= ?1 THEN 1 ELSE r.attempt + 1 END, claim_ttl = excluded.claim_ttl, \
    lease_until = NULL, expires_at = excluded.expires_at, recorded_at = excluded.recorded_at, status = excluded.status, \
    headers = excluded.headers, body = excluded.body \
    WHERE r.expires_at <= ?1 OR (?10 AND r.state = 'claimed' AND r.lease_until <= ?1 AND r.fingerprint = ?11)";

pub(super) const RELEASE: &str =
    "DELETE FROM idempotency_records WHERE key = ?2 AND token = ?3 AND state = 'claimed' AND expires_at > ?1";

/// Whether ?3 has completed the key ?2 before.
pub(super) const COMPLETED_BY: &str =
    "SELECT 1 FROM idempotency_records WHERE key = ?2 AND token = ?3 AND state = 'completed' AND expires_at > ?1";

/// Returns whether the removed row was alive.
pub(super) const PURGE: &str = "DELETE FROM idempotency_records WHERE key = ?2 RETURNING expires_at > ?1 AS alive";

pub(super) const ANY_EXPIRED: &str = "SELECT 1 FROM idempotency_records WHERE expires_at <= ?1 LIMIT 1";

/// At most 512 rows, and no more than one after 4 MiB of bodies: freeing a body walks all its pages.
pub(super) const SWEEP: &str = "\
    DELETE FROM idempotency_records WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (\
    ORDER BY expires_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before \
    FROM (SELECT id, expires_at, coalesce(length(body), 0) AS bytes FROM idempotency_records WHERE expires_at <= ?1 \
    ORDER BY expires_at, id LIMIT 512)) WHERE coalesce(bytes_before, 0) < 4194304)";

/// The unknown outcomes by scope, ?2 at most.
pub(super) const UNKNOWN_OUTCOMES: &str = concat!(
    "SELECT substr(key, 1, instr(key, '/') - 1) AS scope, count(*) AS count FROM (SELECT key FROM idempotency_records \
     WHERE expires_at = ",
    never!(),
    " AND state = 'claimed' AND lease_until <= ?1 LIMIT ?2) GROUP BY scope"
);

/// What the file's content takes, without its free pages.
pub(super) const USED_BYTES: &str = "SELECT (page_count - freelist_count) * page_size \
     FROM pragma_page_count, pragma_freelist_count, pragma_page_size";

macro_rules! entry {
    ($rest:literal) => {
        concat!(
            "SELECT id, key, state, fingerprint, token, attempt, lease_until - ?1 AS lease_left, nullif(expires_at, ",
            never!(),
            ") - ?1 AS time_left, recorded_at, status, length(body) AS body_bytes FROM idempotency_records WHERE expires_at > ?1 ",
            $rest
        )
    };
}

pub(super) const ENTRY: &str = entry!("AND key = ?2");

pub(super) const LIST: &str = entry!("AND key > ?2 ORDER BY key LIMIT ?3");
