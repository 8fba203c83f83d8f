//! The statements for many operations at once. Each does for every element of its arrays what the statement for one does.
//!
//! A batch must not wait for long, because one row that another transaction has locked would hold up the others. So it waits no
//! longer than its own `lock_timeout`, and then it has no effect and its operations go out one by one.
//!
//! The digests have 32 bytes, always. PostgreSQL does not know that, and estimates that one element passes the test. So it looks up
//! each row by its index, also where its statistics say that the table is small: a prepared plan outlives them.

use crate::store::postgres::spare::spare;

macro_rules! patience {
    () => {
        "set_config('lock_timeout', '100ms', true) AS patience"
    };
}

/// `CLAIM` without the answers that are rare: there is no row for a key whose lock is taken, or whose token was given back. The row
/// of a record with a large body is left out too.
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
     AND given_back.expires_at > clock_timestamp()) ORDER BY turn.digest \
     ON CONFLICT (digest) DO UPDATE SET key = excluded.key, state = 'claimed', fingerprint = excluded.fingerprint, \
     token = excluded.token, attempt = CASE WHEN r.expires_at <= (SELECT now FROM moment) THEN 1 ELSE r.attempt + 1 END, \
     claim_ttl = excluded.claim_ttl, awaited = false, lease_until = excluded.lease_until, \
     expires_at = excluded.expires_at, delete_after = excluded.delete_after, guards_token = excluded.guards_token, \
     lingers = true, recorded_at = NULL, status = NULL, headers = NULL, body = NULL \
     WHERE r.expires_at <= (SELECT now FROM moment) OR (NOT excluded.guards_token \
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

/// `COMPLETE` returns a row for each claim that has become its record.
pub(super) const COMPLETE_MANY: &str = concat!(
    "WITH moment AS MATERIALIZED (SELECT ",
    patience!(),
    "), asked AS MATERIALIZED (SELECT asked.* FROM moment, unnest($1::bytea[], $2::text[], $3::bigint[], $4::text[], \
     $5::bigint[], $6::integer[], $7::text[], $8::bytea[]) \
     AS asked (digest, token, ttl, fingerprint, recorded_at, status, headers, body) WHERE length(asked.digest) = 32) \
     UPDATE {schema}.records AS r SET state = 'completed', lease_until = NULL, \
     expires_at = clock_timestamp() + asked.ttl * interval '1 millisecond', \
     delete_after = CASE WHEN r.delete_after BETWEEN clock_timestamp() + asked.ttl * interval '1 millisecond' \
     AND clock_timestamp() + asked.ttl * interval '1 millisecond' + ",
    spare!("asked.ttl"),
    " THEN r.delete_after ELSE clock_timestamp() + asked.ttl * interval '1 millisecond' END, \
     fingerprint = asked.fingerprint, recorded_at = timestamptz 'epoch' + asked.recorded_at * interval '1 millisecond', \
     status = asked.status, headers = asked.headers::jsonb, body = asked.body FROM asked \
     WHERE r.digest = asked.digest AND r.token = asked.token AND r.state = 'claimed' AND r.expires_at > clock_timestamp() \
     RETURNING r.digest, CASE WHEN r.awaited THEN pg_notify($9, encode(r.digest, 'hex'))::text END"
);

/// `RELEASE` returns a row for each claim that has ended. The last parameter says that the statement is meant.
pub(super) const RELEASE_MANY: &str = concat!(
    "WITH moment AS MATERIALIZED (SELECT ",
    patience!(),
    "), asked AS MATERIALIZED (SELECT asked.* FROM moment, unnest($1::bytea[], $2::text[]) AS asked (digest, token) \
     WHERE length(asked.digest) = 32) \
     DELETE FROM {schema}.records AS r USING asked WHERE r.digest = asked.digest AND r.token = asked.token \
     AND r.state = 'claimed' AND r.expires_at > clock_timestamp() AND $4 = 'release many' \
     RETURNING r.digest, CASE WHEN r.awaited THEN pg_notify($3, encode(r.digest, 'hex'))::text END"
);
