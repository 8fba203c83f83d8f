//! The statements of operators and of the deletion of expired rows, for one schema.

/// The time, for a statement that searches many rows. In a subquery the time is a constant, so an index can be used. A statement for
/// one digest calls `clock_timestamp()` directly, which costs less.
macro_rules! now {
    () => {
        "(SELECT clock_timestamp())"
    };
}

/// The result of a resolution: whether the claim of the token $2 had its lease when the statement began, and whether it was resolved.
/// There is no row if there was no such claim.
macro_rules! resolve {
    ($change:expr) => {
        concat!(
            "WITH held AS MATERIALIZED (SELECT lease_until > clock_timestamp() AS leased FROM {schema}.records \
             WHERE digest = $1 AND token = $2 AND state = 'claimed' AND expires_at > clock_timestamp()), \
             resolved AS (",
            $change,
            " RETURNING CASE WHEN awaited THEN pg_notify($3, encode($1, 'hex'))::text END) \
             SELECT leased, EXISTS (SELECT FROM resolved) AS resolved FROM held"
        )
    };
}

macro_rules! lapsed {
    () => {
        " WHERE digest = $1 AND token = $2 AND state = 'claimed' AND expires_at > clock_timestamp() \
         AND lease_until <= clock_timestamp()"
    };
}

/// The last parameter identifies the statement, as in `RELEASE`.
pub(super) const RESOLVE_EXECUTED: &str = resolve!(concat!(
    "UPDATE {schema}.records SET state = 'completed', token = $4, guards_token = false, lease_until = NULL, \
     expires_at = clock_timestamp() + $5 * interval '1 millisecond', \
     delete_after = clock_timestamp() + $5 * interval '1 millisecond', fingerprint = $6, \
     recorded_at = timestamptz 'epoch' + $7 * interval '1 millisecond', status = $8, headers = $9::jsonb, body = $10",
    lapsed!(),
    " AND $11 = 'resolve'"
));

pub(super) const RESOLVE_NOT_EXECUTED: &str =
    resolve!(concat!("DELETE FROM {schema}.records", lapsed!(), " AND $4 = 'resolve as not executed'"));

/// Removes a row. Returns whether it was alive.
pub(super) const PURGE: &str = concat!(
    "DELETE FROM {schema}.records WHERE digest = $1 AND $2 = 'purge' RETURNING expires_at > ",
    now!(),
    " AS alive"
);

// One process at a time deletes, and no claim waits for it. A large body is deleted with its row.
pub(super) const DELETE_EXPIRED: &str = concat!(
    "WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($1) AS is_ours), \
     expired AS MATERIALIZED (SELECT digest FROM {schema}.records WHERE (SELECT is_ours FROM turn) AND delete_after <= ",
    now!(),
    " AND expires_at <= ",
    now!(),
    " ORDER BY delete_after LIMIT 500 FOR UPDATE SKIP LOCKED) \
     DELETE FROM {schema}.records USING expired WHERE records.digest = expired.digest"
);

macro_rules! entry {
    () => {
        concat!(
            "SELECT id, key, encode(digest, 'hex') AS place, state, fingerprint, token, attempt, \
             (extract(epoch FROM lease_until - ",
            now!(),
            ") * 1000)::bigint AS lease_left, CASE WHEN isfinite(expires_at) THEN (extract(epoch FROM expires_at - ",
            now!(),
            ") * 1000)::bigint END AS time_left, (extract(epoch FROM recorded_at) * 1000)::bigint AS recorded_at, status, length(body)::bigint AS body_bytes \
             FROM {schema}.records WHERE expires_at > ",
            now!()
        )
    };
}

pub(super) const ENTRY: &str = concat!(entry!(), " AND digest = $1");

pub(super) const LIST: &str =
    concat!(entry!(), " AND state <> 'given back' AND digest > decode($1, 'hex') ORDER BY digest LIMIT $2");

/// The number of the last row that was read in the search for claims that stay.
macro_rules! looked_at {
    () => {
        "(SELECT coalesce(max(claim_ttl), 0) FROM {schema}.records WHERE digest = '')"
    };
}

/// The marked claims, and the claims among the rows that were not read yet. Each part has the condition of its index. It leaves out
/// expired rows, which would end the listing before its last page.
pub(super) const CLAIMS: &str = concat!(
    "WITH recent AS MATERIALIZED (SELECT digest, state, expires_at FROM {schema}.records WHERE id > ",
    looked_at!(),
    " ORDER BY id DESC LIMIT $3), found AS MATERIALIZED ((SELECT digest FROM {schema}.records \
     WHERE lingers AND state = 'claimed' AND digest > decode($1, 'hex') AND expires_at > ",
    now!(),
    " ORDER BY digest LIMIT $2) UNION (SELECT digest FROM recent \
     WHERE state = 'claimed' AND digest > decode($1, 'hex') AND expires_at > ",
    now!(),
    " ORDER BY digest LIMIT $2)) ",
    entry!(),
    " AND state = 'claimed' AND digest = ANY (ARRAY(SELECT digest FROM found)) ORDER BY digest LIMIT $2"
);

/// Marks the claims among the next rows. It leaves out the last ten thousand rows: most of their claims end soon, and a row with a
/// lower number may still be committed. Returns whether this process has the lock, and whether there were rows to read.
pub(super) const MARK_LINGERING: &str = concat!(
    "WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($1) AS is_ours), \
     batch AS MATERIALIZED (SELECT id, digest, state FROM {schema}.records WHERE (SELECT is_ours FROM turn) AND id > ",
    looked_at!(),
    " AND id <= (SELECT max(id) FROM {schema}.records) - 10000 ORDER BY id LIMIT 10000), \
     marked AS (UPDATE {schema}.records AS r SET lingers = true FROM batch \
     WHERE r.digest = batch.digest AND batch.state = 'claimed' AND r.state = 'claimed' AND NOT r.lingers), \
     looked_at AS (INSERT INTO {schema}.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, delete_after) \
     SELECT '', '', 'given back', '', '', 0, max(id), 'infinity', 'infinity' FROM batch HAVING count(*) > 0 \
     ON CONFLICT (digest) DO UPDATE SET claim_ttl = excluded.claim_ttl RETURNING claim_ttl) \
     SELECT is_ours, EXISTS (SELECT FROM looked_at) AS has_looked FROM turn"
);

/// The number of unknown outcomes in each scope, of at most $1 outcomes. It uses the index of the deletion.
pub(super) const UNKNOWN_OUTCOMES: &str = concat!(
    "SELECT split_part(key, '/', 1) AS scope, count(*) AS count FROM (SELECT key FROM {schema}.records \
     WHERE delete_after = 'infinity' AND expires_at = 'infinity' AND state = 'claimed' AND lease_until <= ",
    now!(),
    " LIMIT $1) AS unknown GROUP BY scope"
);
