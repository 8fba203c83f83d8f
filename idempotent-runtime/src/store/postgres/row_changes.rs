//! What a claim and a completion change in a row. The statements for one operation and for many operations share it.

/// A claim of a key that has a row. The caller adds the condition under which a live claim is taken over, and a closing parenthesis.
macro_rules! taken_over {
    () => {
        "ON CONFLICT (digest) DO UPDATE SET key = excluded.key, state = 'claimed', fingerprint = excluded.fingerprint, \
         token = excluded.token, attempt = CASE WHEN r.expires_at <= (SELECT now FROM moment) THEN 1 ELSE r.attempt + 1 END, \
         claim_ttl = excluded.claim_ttl, awaited = false, lease_until = excluded.lease_until, \
         expires_at = excluded.expires_at, delete_after = excluded.delete_after, guards_token = excluded.guards_token, \
         lingers = true, recorded_at = NULL, status = NULL, headers = NULL, body = NULL \
         WHERE r.expires_at <= (SELECT now FROM moment) OR ("
    };
}

/// The assignments of a completion, except for the response. `$ttl` is in milliseconds.
macro_rules! completed {
    ($ttl:literal) => {
        concat!(
            "state = 'completed', lease_until = NULL, expires_at = pg_catalog.clock_timestamp() + ",
            $ttl,
            " * interval '1 millisecond', delete_after = CASE WHEN r.delete_after BETWEEN pg_catalog.clock_timestamp() + ",
            $ttl,
            " * interval '1 millisecond' AND pg_catalog.clock_timestamp() + ",
            $ttl,
            " * interval '1 millisecond' + ",
            spare!($ttl),
            " THEN r.delete_after ELSE pg_catalog.clock_timestamp() + ",
            $ttl,
            " * interval '1 millisecond' END"
        )
    };
}

pub(super) use {completed, taken_over};
