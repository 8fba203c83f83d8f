//! The statements on the tables.

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments};

pub(super) const OWNED_BYTES: &str = "SELECT bytes FROM main.idempotency_owners WHERE owner = ?1";

pub(super) const CLOCK: &str = "SELECT began_at FROM main.idempotency_clocks WHERE id = ?1";

pub(super) const ADD_CLOCK: &str = "INSERT OR IGNORE INTO main.idempotency_clocks (id, began_at) VALUES (?1, ?2)";

pub(super) const LEASES_FILE: &str = "SELECT name, inode FROM main.idempotency_leases_file";

pub(super) const SET_LEASES_FILE: &str =
    "INSERT OR REPLACE INTO main.idempotency_leases_file (id, name, inode) VALUES (1, ?1, ?2)";

/// Returns a statement in which ?1 is the current time.
pub(super) fn at(now: i64, sql: &'static str) -> Query<'static, Sqlite, SqliteArguments> {
    sqlx::query(sql).bind(now)
}

/// The expiry of an entry that never expires. With a latest possible time, the rows need no further column, and their
/// index finds it.
pub(super) const NEVER: i64 = i64::MAX;

/// The value of [`NEVER`] in a statement.
macro_rules! never {
    () => {
        "9223372036854775807"
    };
}

// These are conditions on a claim `r` with its renewals `l`. The renewals count unless the row has more of them. The
// times of another clock cannot be compared with ?1, so a lease of another clock lasts until it is known to be over.

macro_rules! lease_until {
    () => {
        "coalesce(l.lease_until, r.lease_until)"
    };
}

macro_rules! is_of_other_clock {
    () => {
        "coalesce(l.clock, r.clock) <> ?2"
    };
}

macro_rules! is_alive {
    () => {
        concat!(
            "(max(r.expires_at, coalesce(l.expires_at, 0)) > ?1 OR r.state = 'claimed' AND ",
            is_of_other_clock!(),
            " AND ",
            lease_until!(),
            " > 0)"
        )
    };
}

macro_rules! is_leased {
    () => {
        concat!("(", lease_until!(), " > ?1 OR ", is_of_other_clock!(), " AND ", lease_until!(), " > 0)")
    };
}

/// A JSON list of [`Renewals`](crate::store::sqlite::leases::Renewals) as a table.
macro_rules! renewals {
    ($list:literal) => {
        concat!(
            "(SELECT value ->> 0 AS id, value ->> 1 AS lease_until, value ->> 2 AS expires_at, value ->> 3 AS clock, \
             value ->> 4 AS renewals, value ->> 5 AS lease FROM json_each(",
            $list,
            ")) AS l "
        )
    };
}

macro_rules! on_claim {
    () => {
        "ON l.id = r.lease_id AND l.renewals >= r.renewals AND r.state = 'claimed' "
    };
}

/// The rows that have not expired, with the renewals in a list.
macro_rules! alive_ids {
    ($list:literal, $condition:literal) => {
        concat!(
            "id IN (SELECT r.id FROM main.idempotency_records AS r LEFT JOIN ",
            renewals!($list),
            on_claim!(),
            "WHERE ",
            $condition,
            " AND ",
            is_alive!(),
            ")"
        )
    };
}

/// Selects the columns of [`StoredState`](crate::store::claim_decision::StoredState) of the row of the key ?3 unless it
/// has expired, with the renewals ?4 of its claim. `other_lease` is the length of the lease if another clock wrote it.
pub(super) const EXISTING: &str = concat!(
    "SELECT r.id, r.state, r.fingerprint, r.token, r.attempt, ",
    is_leased!(),
    " AS leased, r.expires_at < ",
    never!(),
    " AS expires, CASE WHEN ",
    is_of_other_clock!(),
    " AND ",
    lease_until!(),
    " > 0 THEN coalesce(l.lease, r.lease, 0) END AS other_lease, r.recorded_at, r.status, r.headers, r.body \
     FROM main.idempotency_records AS r LEFT JOIN ",
    renewals!("?4"),
    on_claim!(),
    "WHERE r.key = ?3 AND ",
    is_alive!()
);

/// Selects the claim of a key, expired or not, and its holder.
pub(super) const HOLDER: &str = "SELECT lease_id, id, renewals FROM main.idempotency_records \
     WHERE key = ?1 AND state = 'claimed' AND lease_id IS NOT NULL";

/// Writes a claim. Overwrites an entry that [`crate::store::claim_decision::decide`] found expired or lapsed.
pub(super) const CLAIM: &str = "\
    INSERT INTO main.idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, lease, lease_until, expires_at, \
    lease_id, clock, owner, counted_bytes) \
    VALUES (?3, 'claimed', ?4, ?5, ?6, ?7, ?8, CASE ?8 WHEN 0 THEN 0 ELSE ?1 + ?8 END, ?9, ?10, ?2, ?11, ?12) \
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, \
    token = excluded.token, attempt = excluded.attempt, claim_ttl = excluded.claim_ttl, lease = excluded.lease, \
    lease_until = excluded.lease_until, expires_at = excluded.expires_at, lease_id = excluded.lease_id, \
    clock = excluded.clock, owner = excluded.owner, counted_bytes = excluded.counted_bytes, renewals = 0, recorded_at = NULL, status = NULL, headers = NULL, body = NULL";

/// Starts all leases again with their full length, because each process waits for that time by its own clock. The lost
/// file may have had more renewals than the row. A number of renewals that a process has seen in the lost file must not
/// occur again.
pub(super) const RENEW_ALL: &str = concat!(
    "UPDATE main.idempotency_records SET clock = 0, renewals = renewals + 1000000000, lease_until = 1, expires_at = CASE expires_at WHEN ",
    never!(),
    " THEN expires_at ELSE ?1 + claim_ttl END WHERE state = 'claimed'"
);

/// Renews the lease of the token ?4, in the row of the key ?3, for ?5. Sets the number of renewals to ?6.
pub(super) const RENEW: &str = concat!(
    "UPDATE main.idempotency_records SET clock = ?2, renewals = ?6, lease = ?5, \
     lease_until = CASE ?5 WHEN 0 THEN 0 ELSE ?1 + ?5 END, expires_at = CASE expires_at WHEN ",
    never!(),
    " THEN expires_at ELSE ?1 + claim_ttl END WHERE ",
    alive_ids!("?7", "r.key = ?3 AND r.token = ?4 AND r.state = 'claimed'")
);

/// Keeps a claim forever, because a request was rejected for its unknown outcome and its retries must be rejected too.
pub(super) const KEEP: &str = concat!(
    "UPDATE main.idempotency_records SET expires_at = ",
    never!(),
    " WHERE key = ?1 AND token = ?2 AND state = 'claimed'"
);

// These statements compare the token themselves, so a holder that lost its claim changes nothing.
pub(super) const COMPLETE: &str = concat!(
    "UPDATE main.idempotency_records SET state = 'completed', lease_until = NULL, expires_at = ?5, fingerprint = ?6, \
     recorded_at = ?7, status = ?8, headers = ?9, body = ?10, counted_bytes = ?12 WHERE ",
    alive_ids!("?11", "r.key = ?3 AND r.token = ?4 AND r.state = 'claimed'")
);

/// Sets the expiry of the record of the key ?2 to ?3.
pub(super) const EXTEND: &str =
    "UPDATE main.idempotency_records SET expires_at = ?3 WHERE key = ?2 AND state = 'completed' AND expires_at > ?1";

/// Writes the record of a claim in a transaction if the key has no row, or an expired record. With an attempt ?10, it
/// replaces the existing row.
pub(super) const RECORD: &str = "\
    INSERT INTO main.idempotency_records AS r (key, state, fingerprint, token, attempt, claim_ttl, expires_at, recorded_at, \
    status, headers, body, owner, counted_bytes) \
    VALUES (?2, 'completed', ?3, ?4, coalesce(?10, 1), ?5, ?11, ?6, ?7, ?8, ?9, ?12, ?13) \
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint, token = excluded.token, \
    attempt = excluded.attempt, claim_ttl = excluded.claim_ttl, lease_until = NULL, expires_at = excluded.expires_at, recorded_at = excluded.recorded_at, status = excluded.status, \
    headers = excluded.headers, body = excluded.body, owner = excluded.owner, counted_bytes = excluded.counted_bytes \
    WHERE ?10 IS NOT NULL OR (r.state <> 'claimed' AND r.expires_at <= ?1)";

/// The same for a key without a row, and COMMIT. Nothing is committed if the key has a row.
pub(super) const RECORD_AND_COMMIT: &str = "\
    INSERT INTO main.idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, expires_at, recorded_at, \
    status, headers, body, owner, counted_bytes) \
    VALUES (?2, 'completed', ?3, ?4, 1, ?5, ?11, ?6, ?7, ?8, ?9, ?12, ?13); COMMIT";

pub(super) const RELEASE: &str = concat!(
    "DELETE FROM main.idempotency_records WHERE ",
    alive_ids!("?5", "r.key = ?3 AND r.token = ?4 AND r.state = 'claimed'")
);

/// Selects whether the token ?3 has completed the key ?2.
pub(super) const COMPLETED_BY: &str =
    "SELECT 1 FROM main.idempotency_records WHERE key = ?2 AND token = ?3 AND state = 'completed' AND expires_at > ?1";

/// Selects whether the key ?1 has a row, expired or not.
pub(super) const ANY: &str = "SELECT 1 FROM main.idempotency_records WHERE key = ?1";

/// The same, after the begin of a transaction with the write lock.
pub(super) const BEGIN_AND_ANY: &str = "BEGIN IMMEDIATE; SELECT 1 FROM main.idempotency_records WHERE key = ?1";

pub(super) const PURGE: &str = "DELETE FROM main.idempotency_records WHERE key = ?1";

pub(super) const ANY_EXPIRED: &str = "SELECT 1 FROM main.idempotency_records WHERE expires_at <= ?1 LIMIT 1";

/// Deletes at most 512 expired records, and at most one more after 4 MiB of bodies, because freeing a body reads all
/// its pages. Claims are deleted by another statement, because they may have been renewed.
pub(super) const DELETE_EXPIRED: &str = "\
    DELETE FROM main.idempotency_records WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (\
    ORDER BY expires_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before \
    FROM (SELECT id, expires_at, coalesce(length(body), 0) AS bytes FROM main.idempotency_records WHERE expires_at <= ?1 \
    AND state <> 'claimed' ORDER BY expires_at, id LIMIT 512)) WHERE coalesce(bytes_before, 0) < 4194304)";

/// Selects whether a claim may have expired.
pub(super) const ANY_EXPIRED_CLAIM: &str =
    "SELECT 1 FROM main.idempotency_records WHERE state = 'claimed' AND expires_at <= ?1 LIMIT 1";

/// Selects the claims that have expired, as far as their rows show.
pub(super) const EXPIRED_CLAIMS: &str = "SELECT lease_id, id, renewals FROM main.idempotency_records \
     WHERE state = 'claimed' AND expires_at <= ?1 AND (clock = ?2 OR lease_until = 0) LIMIT 512";

/// Copies the renewals ?2 to the rows of claims that would otherwise count as expired.
pub(super) const CATCH_UP: &str = concat!(
    "UPDATE main.idempotency_records AS r SET expires_at = max(r.expires_at, coalesce(l.expires_at, 0)), \
     lease_until = coalesce(l.lease_until, r.lease_until), clock = coalesce(l.clock, r.clock), renewals = l.renewals, \
     lease = coalesce(l.lease, r.lease) FROM ",
    renewals!("?2"),
    "WHERE r.state = 'claimed' AND r.expires_at <= ?1 AND l.id = r.lease_id AND l.renewals >= r.renewals"
);

pub(super) const DELETE: &str = "DELETE FROM main.idempotency_records WHERE id IN (SELECT value FROM json_each(?1))";

/// The rows with the renewals of their claims, on a connection to the file of leases.
macro_rules! with_leases {
    () => {
        with_leases!("")
    };
    ($index:literal) => {
        concat!("records.idempotency_records AS r ", $index, on_leases!())
    };
}

macro_rules! on_leases {
    () => {
        "LEFT JOIN main.idempotency_leases AS l ON l.id = r.lease_id AND l.renewals >= r.renewals AND r.state = 'claimed' "
    };
}

/// Counts the unknown outcomes by scope, at most ?3.
pub(super) const UNKNOWN_OUTCOMES: &str = concat!(
    "SELECT substr(key, 1, instr(key, '/') - 1) AS scope, count(*) AS count FROM (SELECT key FROM ",
    with_leases!(),
    "WHERE r.expires_at = ",
    never!(),
    " AND r.state = 'claimed' AND NOT ",
    is_leased!(),
    " LIMIT ?3) GROUP BY scope"
);

/// Selects the bytes of the file's content, without its free pages.
pub(super) const USED_BYTES: &str = "SELECT (page_count - freelist_count) * page_size \
     FROM pragma_page_count, pragma_freelist_count, pragma_page_size";

// The times of another clock are close to ours if neither clock was set. A lease of another clock lasts for its full
// length again at most.
macro_rules! entry {
    ($from:expr, $rest:literal) => {
        concat!(
            "SELECT r.id, key, state, fingerprint, r.token, attempt, CASE WHEN ",
            is_of_other_clock!(),
            " AND ",
            lease_until!(),
            " > 0 THEN coalesce(l.lease, r.lease, 0) ELSE ",
            lease_until!(),
            " - ?1 END AS lease_left, nullif(max(r.expires_at, coalesce(l.expires_at, 0)), ",
            never!(),
            ") - ?1 AS time_left, recorded_at, status, length(body) AS body_bytes FROM ",
            $from,
            "WHERE ",
            is_alive!(),
            $rest
        )
    };
}

pub(super) const ENTRY: &str = entry!(with_leases!(), " AND key = ?3");

pub(super) const LIST: &str = entry!(with_leases!(), " AND key > ?3 ORDER BY key LIMIT ?4");

/// Selects the claims. The statement names their index. Otherwise SQLite would read all keys to get their order.
pub(super) const CLAIMS: &str = entry!(
    with_leases!("INDEXED BY idempotency_records_claimed "),
    " AND r.state = 'claimed' AND key > ?3 ORDER BY key LIMIT ?4"
);
