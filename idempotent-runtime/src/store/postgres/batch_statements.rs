//! The statements for many operations at once. For each element of its arrays, a statement does the same as the statement for one
//! operation.
//!
//! A batch must not wait long for one row that another transaction has locked, because the other operations would wait too. So a
//! batch sets its own `lock_timeout`. If the batch exceeds it, the batch has no effect, and its operations are sent one by one.
//!
//! Every digest has 32 bytes. PostgreSQL does not know that, and estimates that only one element passes the test. So it looks up
//! each row by the index, even if its statistics say that the table is small. A prepared plan is still in use after the table has
//! grown.

use crate::store::postgres::row_changes::{completed, taken_over};
use crate::store::postgres::spare::spare;

macro_rules! patience {
    () => {
        "set_config('lock_timeout', '100ms', true) AS patience"
    };
}

/// `CLAIM` without its rare answers: there is no row for a key whose lock is taken, or whose token was given back. A record with a
/// large body has no row either.
pub(super) const CLAIM_MANY: &str = concat!(
    "WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now, ",
    patience!(),
    "), asked AS MATERIALIZED (SELECT asked.* FROM moment, unnest($1::bytea[], $2::text[], $3::text[], $4::text[], \
     $5::bigint[], $6::bigint[], $7::boolean[], $8::bigint[], $9::text[]) \
     AS asked (digest, key, fingerprint, token, ttl, lease, reruns, lock, former) WHERE length(asked.digest) = 32), \
     looked AS MATERIALIZED (SELECT asked.*, r.id, r.state, r.fingerprint AS found, r.token AS holder, r.attempt, \
     r.lease_until > clock_timestamp() AS leased, r.expires_at, r.recorded_at, r.status, r.headers, r.body \
     FROM asked LEFT JOIN {schema}.records AS r ON r.digest = asked.digest AND r.expires_at > clock_timestamp()), \
     turn AS MATERIALIZED (SELECT digest, key, fingerprint, former, token, ttl, lease, reruns, \
     pg_try_advisory_xact_lock_shared(lock) AS is_free FROM looked \
     WHERE id IS NULL OR (reruns AND state = 'claimed' AND NOT leased AND found IN (fingerprint, former) AND holder <> token)), \
     claimed AS (INSERT INTO {schema}.records AS r \
     (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, delete_after, guards_token) \
     SELECT digest, key, 'claimed', fingerprint, token, 1, ttl, now + lease * interval '1 millisecond', \
     CASE WHEN reruns THEN now + ttl * interval '1 millisecond' ELSE 'infinity' END, \
     CASE WHEN reruns THEN now + ttl * interval '1 millisecond' + ",
    spare!("ttl"),
    " ELSE 'infinity' END, NOT reruns FROM moment, turn WHERE is_free AND NOT EXISTS (\
     SELECT FROM {schema}.records AS given_back WHERE given_back.digest = turn.digest || decode(turn.token, 'hex') \
     AND given_back.expires_at > clock_timestamp()) ORDER BY turn.digest ",
    taken_over!(),
    "NOT excluded.guards_token \
     AND r.state = 'claimed' AND r.lease_until <= (SELECT now FROM moment) AND EXISTS (SELECT FROM turn \
     WHERE turn.digest = excluded.digest AND r.fingerprint IN (turn.fingerprint, turn.former))) \
     RETURNING r.digest, r.id, r.attempt) \
     SELECT digest, id, 'claimed' AS state, NULL AS fingerprint, NULL AS token, attempt, true AS leased, \
     true AS expires, NULL::bigint AS recorded_at, NULL::integer AS status, NULL::text AS headers, NULL::bytea AS body, \
     true AS acquired FROM claimed \
     UNION ALL SELECT digest, id, state, found, holder, attempt, leased, isfinite(expires_at), \
     (extract(epoch FROM recorded_at) * 1000)::bigint, status, headers::text, body, false \
     FROM looked WHERE id IS NOT NULL AND coalesce(octet_length(body), 0) <= $10"
);

/// `COMPLETE` for many claims. Returns a row for each claim that has become its record.
pub(super) const COMPLETE_MANY: &str = concat!(
    "WITH moment AS MATERIALIZED (SELECT ",
    patience!(),
    "), asked AS MATERIALIZED (SELECT asked.* FROM moment, unnest($1::bytea[], $2::text[], $3::bigint[], $4::text[], \
     $5::bigint[], $6::integer[], $7::text[], $8::bytea[]) \
     AS asked (digest, token, ttl, fingerprint, recorded_at, status, headers, body) WHERE length(asked.digest) = 32) \
     UPDATE {schema}.records AS r SET ",
    completed!("asked.ttl"),
    ", fingerprint = asked.fingerprint, recorded_at = timestamptz 'epoch' + asked.recorded_at * interval '1 millisecond', \
     status = asked.status, headers = asked.headers::jsonb, body = asked.body FROM asked \
     WHERE r.digest = asked.digest AND r.token = asked.token AND r.state = 'claimed' AND r.expires_at > clock_timestamp() \
     RETURNING r.digest, CASE WHEN r.awaited THEN pg_notify($9, encode(r.digest, 'hex'))::text END"
);

/// `RELEASE` for many claims. Returns a row for each claim that has ended. The last parameter identifies the statement, as in
/// `RELEASE`.
pub(super) const RELEASE_MANY: &str = concat!(
    "WITH moment AS MATERIALIZED (SELECT ",
    patience!(),
    "), asked AS MATERIALIZED (SELECT asked.* FROM moment, unnest($1::bytea[], $2::text[]) AS asked (digest, token) \
     WHERE length(asked.digest) = 32) \
     DELETE FROM {schema}.records AS r USING asked WHERE r.digest = asked.digest AND r.token = asked.token \
     AND r.state = 'claimed' AND r.expires_at > clock_timestamp() AND $4 = 'release many' \
     RETURNING r.digest, CASE WHEN r.awaited THEN pg_notify($3, encode(r.digest, 'hex'))::text END"
);
