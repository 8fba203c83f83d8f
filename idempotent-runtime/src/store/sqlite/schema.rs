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
    lease_id INTEGER,            -- of the claim, in the file of leases
    claim_ttl INTEGER NOT NULL,  -- milliseconds; what a renewal adds to now for expires_at
    lease_until INTEGER,         -- milliseconds since 1970 by the store's clock, as all below; without the renewals
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
CREATE TABLE idempotency_leases_file (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL           -- that the file of leases has given itself
) STRICT;
CREATE INDEX idempotency_records_expires_at ON idempotency_records (expires_at);
CREATE INDEX idempotency_records_claimed ON idempotency_records (expires_at) WHERE state = 'claimed';
INSERT INTO idempotency_schema (id, version) VALUES (1, 1);
";

pub(super) const CLOCK: &str = "SELECT began_at FROM main.idempotency_clock WHERE boot = ?1";

pub(super) const SET_CLOCK: &str =
    "INSERT OR REPLACE INTO main.idempotency_clock (id, boot, began_at) VALUES (1, ?1, ?2)";

pub(super) const LEASES_FILE: &str = "SELECT name FROM main.idempotency_leases_file";

pub(super) const SET_LEASES_FILE: &str =
    "INSERT OR REPLACE INTO main.idempotency_leases_file (id, name) VALUES (1, ?1)";

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

/// The columns of [`StoredState`](crate::store::claim_decision::StoredState), with `leased` of this time.
macro_rules! state {
    ($lease_until:literal) => {
        concat!(
            "SELECT r.id, lease_id, state, fingerprint, token, attempt, ",
            $lease_until,
            " > ?1 AS leased, r.expires_at < ",
            never!(),
            " AS expires, recorded_at, status, headers, body FROM main.idempotency_records AS r "
        )
    };
}

/// When a row expires, with the renewals of its claim in a JSON list of
/// [`Renewals`](crate::store::sqlite::leases::Renewals).
macro_rules! expires_at {
    ($list:literal) => {
        concat!("max(expires_at, coalesce((SELECT value ->> 2 FROM json_each(", $list, ")), 0))")
    };
}

/// The row of the key ?2, unless it has expired by the row alone.
pub(super) const EXISTING: &str = concat!(state!("r.lease_until"), "WHERE key = ?2 AND r.expires_at > ?1");

/// The same with the renewals ?3 of the claim in it.
pub(super) const EXISTING_RENEWED: &str = concat!(
    state!("coalesce(l.lease_until, r.lease_until)"),
    "LEFT JOIN (SELECT value ->> 0 AS id, value ->> 1 AS lease_until, value ->> 2 AS expires_at FROM json_each(?3)) AS l \
     ON l.id = r.lease_id AND r.state = 'claimed' WHERE key = ?2 AND max(r.expires_at, coalesce(l.expires_at, 0)) > ?1"
);

/// The claim of a key, expired or not, and its holder.
pub(super) const HOLDER: &str =
    "SELECT id, lease_id FROM main.idempotency_records WHERE key = ?1 AND state = 'claimed' AND lease_id IS NOT NULL";

/// Overwrites what [`crate::store::claim_decision::decide`] found expired or lapsed.
pub(super) const CLAIM: &str = "\
    INSERT INTO main.idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, lease_id) \
    VALUES (?2, 'claimed', ?3, ?4, ?5, ?6, ?1 + ?7, ?8, ?9) \
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, \
    token = excluded.token, attempt = excluded.attempt, claim_ttl = excluded.claim_ttl, \
    lease_until = excluded.lease_until, expires_at = excluded.expires_at, lease_id = excluded.lease_id, \
    recorded_at = NULL, status = NULL, headers = NULL, body = NULL";

/// Begins all leases anew, as long as they were.
pub(super) const RENEW_ALL: &str = concat!(
    "UPDATE main.idempotency_records SET lease_until = ?1 + CASE expires_at WHEN ",
    never!(),
    " THEN min(claim_ttl / 2, 600000) ELSE lease_until - (expires_at - claim_ttl) END, expires_at = CASE expires_at WHEN ",
    never!(),
    " THEN expires_at ELSE ?1 + claim_ttl END WHERE state = 'claimed'"
);

/// The claim was rejected as one of unknown outcome, and stays so.
pub(super) const KEEP: &str = concat!(
    "UPDATE main.idempotency_records SET expires_at = ",
    never!(),
    " WHERE key = ?1 AND token = ?2 AND state = 'claimed'"
);

// In these the token is compared in the same statement: a holder whose claim went to a successor changes nothing.
pub(super) const COMPLETE: &str = concat!(
    "UPDATE main.idempotency_records SET state = 'completed', lease_until = NULL, expires_at = ?1 + ?4, fingerprint = ?5, \
     recorded_at = ?6, status = ?7, headers = ?8, body = ?9 \
     WHERE key = ?2 AND token = ?3 AND state = 'claimed' AND ",
    expires_at!("?10"),
    " > ?1"
);

/// The record of a claim in a transaction: there is no row yet, or an expired record. With an attempt ?10, it replaces the
/// existing row.
pub(super) const RECORD: &str = "\
    INSERT INTO main.idempotency_records AS r (key, state, fingerprint, token, attempt, claim_ttl, expires_at, recorded_at, \
    status, headers, body) VALUES (?2, 'completed', ?3, ?4, coalesce(?10, 1), ?5, ?1 + ?5, ?6, ?7, ?8, ?9) \
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, token = excluded.token, \
    attempt = excluded.attempt, claim_ttl = excluded.claim_ttl, \
    lease_until = NULL, expires_at = excluded.expires_at, recorded_at = excluded.recorded_at, status = excluded.status, \
    headers = excluded.headers, body = excluded.body \
    WHERE ?10 IS NOT NULL OR (r.state <> 'claimed' AND r.expires_at <= ?1)";

pub(super) const RELEASE: &str = concat!(
    "DELETE FROM main.idempotency_records WHERE key = ?2 AND token = ?3 AND state = 'claimed' AND ",
    expires_at!("?4"),
    " > ?1"
);

/// Whether ?3 has completed the key ?2 before.
pub(super) const COMPLETED_BY: &str =
    "SELECT 1 FROM main.idempotency_records WHERE key = ?2 AND token = ?3 AND state = 'completed' AND expires_at > ?1";

/// Returns whether the removed row was alive.
pub(super) const PURGE: &str =
    concat!("DELETE FROM main.idempotency_records WHERE key = ?2 RETURNING ", expires_at!("?3"), " > ?1 AS alive");

pub(super) const ANY_EXPIRED: &str = "SELECT 1 FROM main.idempotency_records WHERE expires_at <= ?1 LIMIT 1";

/// At most 512 rows, and no more than one after 4 MiB of bodies: freeing a body walks all its pages. Claims go by themselves:
/// they may have been renewed.
pub(super) const DELETE_EXPIRED: &str = "\
    DELETE FROM main.idempotency_records WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (\
    ORDER BY expires_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before \
    FROM (SELECT id, expires_at, coalesce(length(body), 0) AS bytes FROM main.idempotency_records WHERE expires_at <= ?1 \
    AND state <> 'claimed' ORDER BY expires_at, id LIMIT 512)) WHERE coalesce(bytes_before, 0) < 4194304)";

/// The claims that have expired, as far as their rows tell.
pub(super) const EXPIRED_CLAIMS: &str =
    "SELECT id, lease_id FROM main.idempotency_records WHERE state = 'claimed' AND expires_at <= ?1 LIMIT 512";

/// Those rows of them that were renewed by ?2 get what that says.
pub(super) const CATCH_UP: &str = "\
    UPDATE main.idempotency_records AS r SET expires_at = l.expires_at, lease_until = l.lease_until \
    FROM (SELECT value ->> 0 AS id, value ->> 1 AS lease_until, value ->> 2 AS expires_at FROM json_each(?2)) AS l \
    WHERE r.state = 'claimed' AND r.expires_at <= ?1 AND l.id = r.lease_id AND l.expires_at > ?1";

pub(super) const DELETE: &str = "DELETE FROM main.idempotency_records WHERE id IN (SELECT value FROM json_each(?1))";

/// Rows with the renewals of their claims, on a connection to the file of leases.
macro_rules! with_leases {
    () => {
        "records.idempotency_records AS r \
         LEFT JOIN main.idempotency_leases AS l ON l.id = r.lease_id AND r.state = 'claimed' "
    };
}

/// The unknown outcomes by scope, ?2 at most.
pub(super) const UNKNOWN_OUTCOMES: &str = concat!(
    "SELECT substr(key, 1, instr(key, '/') - 1) AS scope, count(*) AS count FROM (SELECT key FROM ",
    with_leases!(),
    "WHERE r.expires_at = ",
    never!(),
    " AND r.state = 'claimed' AND coalesce(l.lease_until, r.lease_until) <= ?1 LIMIT ?2) GROUP BY scope"
);

/// What the file's content takes, without its free pages.
pub(super) const USED_BYTES: &str = "SELECT (page_count - freelist_count) * page_size \
     FROM pragma_page_count, pragma_freelist_count, pragma_page_size";

macro_rules! entry {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, key, state, fingerprint, r.token, attempt, coalesce(l.lease_until, r.lease_until) - ?1 AS lease_left, \
             nullif(max(r.expires_at, coalesce(l.expires_at, 0)), ",
            never!(),
            ") - ?1 AS time_left, recorded_at, status, length(body) AS body_bytes FROM ",
            with_leases!(),
            "WHERE max(r.expires_at, coalesce(l.expires_at, 0)) > ?1 ",
            $rest
        )
    };
}

pub(super) const ENTRY: &str = entry!("AND key = ?2");

pub(super) const LIST: &str = entry!("AND key > ?2 ORDER BY key LIMIT ?3");
