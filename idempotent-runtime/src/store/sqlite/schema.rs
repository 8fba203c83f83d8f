//! The tables and every statement on them.

/// What this version reads and writes.
pub(super) const VERSION: i64 = 1;

/// Milliseconds since 1970; the same in all places of one statement. The rounding undoes `unixepoch`'s floating point.
macro_rules! now {
    () => {
        "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"
    };
}

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
    lease_until INTEGER,         -- milliseconds since 1970, as all times below
    expires_at INTEGER NOT NULL,
    recorded_at INTEGER,
    status INTEGER,
    headers TEXT,                -- JSON
    body BLOB                    -- NULL in a completed row: it was too large to record
) STRICT;
CREATE INDEX idempotency_records_expires_at ON idempotency_records (expires_at);
INSERT INTO idempotency_schema (id, version) VALUES (1, 1);
";

/// What stands under the key ?1 and is alive.
pub(super) const STANDING: &str = concat!(
    "SELECT id, state, fingerprint, token, attempt, lease_until > ",
    now!(),
    " AS leased, recorded_at, status, headers, body FROM idempotency_records WHERE key = ?1 AND expires_at > ",
    now!()
);

/// Overwrites what [`crate::store::standing::judge`] found expired or lapsed.
pub(super) const CLAIM: &str = concat!(
    "INSERT INTO idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at) \
     VALUES (?1, 'claimed', ?2, ?3, ?4, ?5, ",
    now!(),
    " + ?6, ",
    now!(),
    " + ?5) ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, \
     token = excluded.token, attempt = excluded.attempt, claim_ttl = excluded.claim_ttl, \
     lease_until = excluded.lease_until, expires_at = excluded.expires_at, recorded_at = NULL, status = NULL, \
     headers = NULL, body = NULL"
);

// In these three the token is compared in the same statement: a holder whose claim went to a successor changes nothing.
pub(super) const RENEW: &str = concat!(
    "UPDATE idempotency_records SET lease_until = ",
    now!(),
    " + ?3, expires_at = ",
    now!(),
    " + claim_ttl WHERE key = ?1 AND token = ?2 AND state = 'claimed' AND expires_at > ",
    now!()
);

pub(super) const COMPLETE: &str = concat!(
    "UPDATE idempotency_records SET state = 'completed', lease_until = NULL, expires_at = ",
    now!(),
    " + ?3, fingerprint = ?4, recorded_at = ?5, status = ?6, headers = ?7, body = ?8 \
     WHERE key = ?1 AND token = ?2 AND state = 'claimed' AND expires_at > ",
    now!()
);

pub(super) const RELEASE: &str = concat!(
    "DELETE FROM idempotency_records WHERE key = ?1 AND token = ?2 AND state = 'claimed' AND expires_at > ",
    now!()
);

/// Whether ?2 has completed the key ?1 before.
pub(super) const COMPLETED_BY: &str = concat!(
    "SELECT 1 FROM idempotency_records WHERE key = ?1 AND token = ?2 AND state = 'completed' AND expires_at > ",
    now!()
);

/// Returns whether the removed row was alive.
pub(super) const PURGE: &str =
    concat!("DELETE FROM idempotency_records WHERE key = ?1 RETURNING expires_at > ", now!(), " AS alive");

pub(super) const ANY_EXPIRED: &str =
    concat!("SELECT 1 FROM idempotency_records WHERE expires_at <= ", now!(), " LIMIT 1");

/// At most 512 rows, and no more than one after 4 MiB of bodies: freeing a body walks all its pages.
pub(super) const SWEEP: &str = concat!(
    "DELETE FROM idempotency_records WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (\
     ORDER BY expires_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before \
     FROM (SELECT id, expires_at, coalesce(length(body), 0) AS bytes FROM idempotency_records WHERE expires_at <= ",
    now!(),
    " ORDER BY expires_at, id LIMIT 512)) WHERE coalesce(bytes_before, 0) < 4194304)"
);

/// What the file's content takes, without its free pages.
pub(super) const USED_BYTES: &str = "SELECT (page_count - freelist_count) * page_size \
     FROM pragma_page_count, pragma_freelist_count, pragma_page_size";

macro_rules! entry {
    () => {
        concat!(
            "SELECT id, key, state, fingerprint, attempt, lease_until - ",
            now!(),
            " AS lease_left, expires_at - ",
            now!(),
            " AS time_left, recorded_at, status, length(body) AS body_bytes FROM idempotency_records WHERE expires_at > ",
            now!()
        )
    };
}

pub(super) const ENTRY: &str = concat!(entry!(), " AND key = ?1");

pub(super) const LIST: &str = concat!(entry!(), " AND key > ?1 ORDER BY key LIMIT ?2");
