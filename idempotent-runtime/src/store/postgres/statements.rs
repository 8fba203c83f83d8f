//! The statements of the request path, and all statements for one schema.

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgArguments, Postgres};
use std::sync::Arc;

use crate::store::postgres::admin_statements::{
    CLAIMS, DELETE_EXPIRED, ENTRY, LIST, MARK_LINGERING, PURGE, RESOLVE_EXECUTED, RESOLVE_NOT_EXECUTED,
    UNKNOWN_OUTCOMES,
};
use crate::store::postgres::advisory_locks::other_request;
use crate::store::postgres::batch_statements::{CLAIM_MANY, COMPLETE_MANY, RELEASE_MANY};
use crate::store::postgres::pooler::Pooler;
use crate::store::postgres::row_changes::{completed, taken_over};
use crate::store::postgres::spare::spare;

macro_rules! existing {
    () => {
        "SELECT id, state, fingerprint, token, attempt, lease_until > pg_catalog.clock_timestamp() AS leased, \
         pg_catalog.isfinite(expires_at) AS expires, (extract(epoch FROM recorded_at) * 1000)::bigint AS recorded_at, status, headers::text AS headers, body, \
         false AS acquired FROM {schema}.records WHERE digest = $1 AND expires_at > pg_catalog.clock_timestamp()"
    };
}

/// The new deletion time of a renewed row. NULL if the present deletion time is not before the new expiry.
macro_rules! later {
    ($ttl:literal) => {
        concat!(
            "CASE WHEN delete_after < pg_catalog.clock_timestamp() + ",
            $ttl,
            " * interval '1 millisecond' THEN pg_catalog.clock_timestamp() + ",
            $ttl,
            " * interval '1 millisecond' + ",
            spare!($ttl),
            " END"
        )
    };
}

/// The row of the digest $1, or a row of NULLs if there is none or it has expired. Behind a pooler that the store has not detected,
/// another client's statement may run instead. So an answer without a row must not mean that the key is free.
const EXISTING: &str = concat!(
    "SELECT pg_is_in_recovery() AS follows, existing.* FROM (SELECT) AS one LEFT JOIN (",
    existing!(),
    ") AS existing ON true"
);

/// What the statements that began a transaction got, the transaction's id if it holds the claim, the time at which it began, and the
/// row of the digest $1. In one round trip, but in a later statement than the locks: under READ COMMITTED, its snapshot shows what the
/// former holder of the locks has recorded. At a higher level the snapshot may be older than the locks, so it reads no row, and a
/// serializable transaction does not conflict with the records of others.
const CLAIM_IN_TRANSACTION: &str = concat!(
    "SELECT current_setting('idempotent_runtime.locked') AS locked, \
     CASE current_setting('idempotent_runtime.locked') WHEN 'acquired' THEN txid_current()::text ELSE '' END AS transaction_id, \
     extract(epoch FROM now())::text AS began_at, current_setting('transaction_isolation') AS isolation, existing.* \
     FROM (SELECT) AS one LEFT JOIN (",
    existing!(),
    " AND current_setting('transaction_isolation') = 'read committed') AS existing ON true"
);

// A duplicate only reads. The statement tries the INSERT if the snapshot shows no live row, or a claim that may be taken over. The
// INSERT checks its condition again on the newest version of the row. If another claim was faster, its row was committed after the
// snapshot, so it is in neither part of the answer. Then the answer has no row, and the caller sends the statement again.
//
// A handler with a `Tx` has no row yet. Its claim is the lock of the key, which it holds exclusively. A plain claim takes the same
// lock before its INSERT, shared with other plain claims, and keeps it until its statement has committed. The cases:
//
// - A transaction holds the lock: the statement inserts nothing, and the answer is a row in the state `transaction`.
// - The transaction committed between this statement's snapshot and its lock: a transaction's row is visible before its lock is
//   free, so the INSERT finds the row and changes nothing. The answer has no row, and the caller sends the statement again.
// - The transaction rolled back: the key has no row, and this statement gets the claim.
// - A transaction tries the lock while this statement holds it: the transaction does not get the lock, and treats its request as a
//   duplicate of one in flight, which is correct. It finds no lock of a request for this claim, so it never treats this claim as
//   another request's. After this statement has committed, the transaction's retry sees the row.
//
// A replay and a duplicate of a plain claim insert nothing and take no lock.
//
// A token that was given back has a row of its own. Before the statement claims, it looks for that row. If that row is committed
// after the snapshot, a unique index rejects a claim that never expires.
const CLAIM: &str = concat!(
    "WITH moment AS MATERIALIZED (SELECT pg_catalog.clock_timestamp() AS now), \
     existing AS MATERIALIZED (",
    existing!(),
    "), turn AS MATERIALIZED (\
     SELECT pg_try_advisory_xact_lock_shared($10) AS is_free WHERE NOT EXISTS (SELECT FROM existing \
     WHERE NOT ($7 AND state = 'claimed' AND NOT leased AND fingerprint IN ($3, $11) AND token <> $4))), \
     given_back AS MATERIALIZED (\
     SELECT FROM {schema}.records WHERE digest = $1 || decode($4, 'hex') AND expires_at > pg_catalog.clock_timestamp()), claimed AS (\
     INSERT INTO {schema}.records AS r \
     (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, delete_after, guards_token) \
     SELECT $1, $2, 'claimed', $3, $4, 1, $5, now + $6 * interval '1 millisecond', \
     CASE WHEN $7 THEN now + $5 * interval '1 millisecond' ELSE 'infinity' END, \
     CASE WHEN $7 THEN now + $5 * interval '1 millisecond' + ",
    spare!("$5"),
    " ELSE 'infinity' END, NOT $7 FROM moment, turn \
     WHERE is_free AND NOT EXISTS (SELECT FROM given_back) ",
    taken_over!(),
    "$7 \
     AND r.state = 'claimed' AND r.lease_until <= (SELECT now FROM moment) AND r.fingerprint IN ($3, $11)) \
     RETURNING r.id, r.attempt) \
     SELECT id, 'claimed' AS state, NULL AS fingerprint, NULL AS token, attempt, true AS leased, \
     true AS expires, NULL::bigint AS recorded_at, NULL::integer AS status, NULL::text AS headers, NULL::bytea AS body, \
     true AS acquired FROM claimed \
     UNION ALL SELECT NULL, 'transaction', NULL, NULL, ",
    other_request!("$8", "$9", "$10"),
    ", NULL, NULL, NULL, NULL, NULL, NULL, false FROM turn WHERE NOT is_free \
     UNION ALL SELECT NULL, 'given back', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, false \
     FROM turn WHERE is_free AND EXISTS (SELECT FROM given_back) \
     UNION ALL SELECT * FROM existing WHERE NOT EXISTS (SELECT FROM claimed) AND NOT EXISTS (SELECT FROM turn WHERE NOT is_free)"
);

const RENEW: &str = concat!(
    "UPDATE {schema}.records SET lease_until = pg_catalog.clock_timestamp() + $3 * interval '1 millisecond', \
     expires_at = CASE WHEN pg_catalog.isfinite(expires_at) THEN pg_catalog.clock_timestamp() + claim_ttl * interval '1 millisecond' \
     ELSE expires_at END, delete_after = greatest(delete_after, ",
    later!("records.claim_ttl"),
    ") WHERE digest = $1 AND token = $2 AND state = 'claimed' AND expires_at > pg_catalog.clock_timestamp()"
);

/// [`RENEW`] for lists of digests, tokens and leases. Returns the tokens that hold their claims, and whether each was renewed. It
/// skips a row that another statement has locked, so that the other rows do not wait.
const RENEW_MANY: &str = concat!(
    "WITH renewal AS MATERIALIZED (\
     SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[]) AS renewal (digest, token, lease)), \
     held AS MATERIALIZED (SELECT r.token FROM {schema}.records AS r JOIN renewal USING (digest, token) \
     WHERE r.state = 'claimed' AND r.expires_at > pg_catalog.clock_timestamp()), \
     free AS MATERIALIZED (SELECT r.digest, r.token, renewal.lease FROM {schema}.records AS r JOIN renewal USING (digest, token) \
     WHERE r.state = 'claimed' AND r.expires_at > pg_catalog.clock_timestamp() FOR UPDATE OF r SKIP LOCKED), \
     renewed AS (UPDATE {schema}.records AS r \
     SET lease_until = pg_catalog.clock_timestamp() + free.lease * interval '1 millisecond', \
     expires_at = CASE WHEN pg_catalog.isfinite(r.expires_at) THEN pg_catalog.clock_timestamp() + r.claim_ttl * interval '1 millisecond' \
     ELSE r.expires_at END, delete_after = greatest(delete_after, ",
    later!("r.claim_ttl"),
    ") FROM free WHERE r.digest = free.digest RETURNING r.token) \
     SELECT held.token, EXISTS (SELECT FROM renewed WHERE renewed.token = held.token) AS renewed FROM held"
);

/// Makes a claim permanent whose request was rejected because its outcome is unknown.
const KEEP: &str = "UPDATE {schema}.records SET expires_at = 'infinity', delete_after = 'infinity' WHERE digest = $1 AND token = $2 \
     AND state = 'claimed' AND expires_at > pg_catalog.clock_timestamp() AND lease_until <= pg_catalog.clock_timestamp()";

// NOTIFY takes a lock for the whole database at COMMIT, so the statement notifies only if a request waits.
const COMPLETE: &str = concat!(
    "UPDATE {schema}.records AS r SET ",
    completed!("$3"),
    ", fingerprint = $4, \
     recorded_at = timestamptz 'epoch' + $5 * interval '1 millisecond', status = $6, headers = $7::jsonb, body = $8 \
     WHERE digest = $1 AND token = $2 AND state = 'claimed' AND expires_at > pg_catalog.clock_timestamp() \
     RETURNING CASE WHEN awaited THEN pg_notify($9, encode($1, 'hex'))::text END"
);

/// Lets the record of the digest $1 expire in $2 milliseconds. The third parameter identifies the statement, as in [`RELEASE`].
const EXTEND: &str = concat!(
    "UPDATE {schema}.records SET expires_at = pg_catalog.clock_timestamp() + $2 * interval '1 millisecond', \
     delete_after = CASE WHEN delete_after BETWEEN pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' \
     AND pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' + ",
    spare!("$2"),
    " THEN delete_after ELSE pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' + ",
    spare!("$2"),
    " END WHERE digest = $1 AND state = 'completed' AND expires_at > pg_catalog.clock_timestamp() AND $3 = 'extend'"
);

/// Ends a claim. The last parameter identifies the statement: behind a pooler, it may run instead of another client's statement with
/// the same types of parameters, and must then change nothing.
const RELEASE: &str = "DELETE FROM {schema}.records \
     WHERE digest = $1 AND token = $2 AND state = 'claimed' AND expires_at > pg_catalog.clock_timestamp() AND $4 = 'release' \
     RETURNING CASE WHEN awaited THEN pg_notify($3, encode($1, 'hex'))::text END";

/// Prevents a late claim with the token $2 for the digest $1, for $3 milliseconds, unless the claim has a record. Inserts nothing if
/// the row already exists, or if a claim that never expires has arrived in the meantime.
const GIVE_BACK: &str = "INSERT INTO {schema}.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, \
     delete_after, guards_token) \
     SELECT $1 || decode($2, 'hex'), '', 'given back', '', $2, 0, 0, pg_catalog.clock_timestamp() + $3 * interval '1 millisecond', \
     pg_catalog.clock_timestamp() + $3 * interval '1 millisecond', true WHERE $4 = 'give back' AND NOT EXISTS (SELECT FROM {schema}.records WHERE digest = $1 AND token = $2 AND state = 'completed' \
     AND expires_at > pg_catalog.clock_timestamp()) ON CONFLICT DO NOTHING";

const AWAIT: &str =
    "UPDATE {schema}.records SET awaited = true WHERE digest = $1 AND state = 'claimed' AND NOT awaited";

/// Writes the record of a claim in a transaction. The key has no row, or a row that may be taken over.
const RECORD: &str = "INSERT INTO {schema}.records AS r (digest, key, state, fingerprint, token, attempt, claim_ttl, \
     expires_at, delete_after, recorded_at, status, headers, body) \
     VALUES ($1, $2, 'completed', $3, $4, 1, $5, pg_catalog.clock_timestamp() + $5 * interval '1 millisecond', \
     pg_catalog.clock_timestamp() + $5 * interval '1 millisecond', \
     timestamptz 'epoch' + $6 * interval '1 millisecond', $7, $8::jsonb, $9) \
     ON CONFLICT (digest) DO UPDATE SET key = excluded.key, state = 'completed', fingerprint = excluded.fingerprint, \
     token = excluded.token, claim_ttl = excluded.claim_ttl, lease_until = NULL, expires_at = excluded.expires_at, \
     delete_after = excluded.delete_after, guards_token = false, recorded_at = excluded.recorded_at, status = excluded.status, headers = excluded.headers, body = excluded.body \
     WHERE r.expires_at <= pg_catalog.clock_timestamp() OR ($10 AND r.state = 'claimed' \
     AND r.lease_until <= pg_catalog.clock_timestamp() AND r.fingerprint = $13) \
     RETURNING CASE WHEN $12 THEN pg_notify($11, encode($1, 'hex'))::text END";

/// Returns whether the token $2 has completed the claim of the digest $1.
const COMPLETED_BY: &str = "SELECT EXISTS (SELECT FROM {schema}.records WHERE digest = $1 AND token = $2 \
     AND state = 'completed' AND expires_at > pg_catalog.clock_timestamp())";

pub(super) type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// One statement for one schema. A clone shares its text.
#[derive(Clone)]
pub(super) struct Statement {
    sql: Arc<str>,
    pooler: Arc<Pooler>,
}

impl Statement {
    /// Returns the query. Behind a pooler it has no name, because the name may belong to another client.
    pub(super) fn query(&self) -> Query {
        sqlx::query(AssertSqlSafe(Arc::clone(&self.sql))).persistent(!self.pooler.is_there())
    }
}

pub(super) struct Statements {
    pub(super) existing: Statement,
    pub(super) claim_in_transaction: Statement,
    pub(super) claim: Statement,
    pub(super) claim_many: Statement,
    pub(super) renew: Statement,
    pub(super) renew_many: Statement,
    pub(super) keep: Statement,
    pub(super) complete: Statement,
    pub(super) complete_many: Statement,
    pub(super) extend: Statement,
    pub(super) release: Statement,
    pub(super) release_many: Statement,
    pub(super) give_back: Statement,
    pub(super) await_end: Statement,
    pub(super) record: Statement,
    pub(super) resolve_executed: Statement,
    pub(super) resolve_not_executed: Statement,
    pub(super) completed_by: Statement,
    pub(super) purge: Statement,
    pub(super) delete_expired: Statement,
    pub(super) entry: Statement,
    pub(super) list: Statement,
    pub(super) claims: Statement,
    pub(super) mark_lingering: Statement,
    pub(super) unknown_outcomes: Statement,
}

impl Statements {
    /// `schema` is quoted.
    pub(super) fn new(schema: &str, pooler: &Arc<Pooler>) -> Self {
        let statement =
            |template: &str| Statement { sql: template.replace("{schema}", schema).into(), pooler: Arc::clone(pooler) };
        Self {
            existing: statement(EXISTING),
            claim_in_transaction: statement(CLAIM_IN_TRANSACTION),
            claim: statement(CLAIM),
            claim_many: statement(CLAIM_MANY),
            renew: statement(RENEW),
            renew_many: statement(RENEW_MANY),
            keep: statement(KEEP),
            complete: statement(COMPLETE),
            complete_many: statement(COMPLETE_MANY),
            extend: statement(EXTEND),
            release: statement(RELEASE),
            release_many: statement(RELEASE_MANY),
            give_back: statement(GIVE_BACK),
            await_end: statement(AWAIT),
            record: statement(RECORD),
            resolve_executed: statement(RESOLVE_EXECUTED),
            resolve_not_executed: statement(RESOLVE_NOT_EXECUTED),
            completed_by: statement(COMPLETED_BY),
            purge: statement(PURGE),
            delete_expired: statement(DELETE_EXPIRED),
            entry: statement(ENTRY),
            list: statement(LIST),
            claims: statement(CLAIMS),
            mark_lingering: statement(MARK_LINGERING),
            unknown_outcomes: statement(UNKNOWN_OUTCOMES),
        }
    }
}
