//! The tables and statements of the file of leases. On its connections, the database is `records`.

pub(super) const CREATE: &str = "
CREATE TABLE IF NOT EXISTS idempotency_leases (
    id INTEGER PRIMARY KEY,    -- idempotency_records.lease_id of the claim
    record INTEGER NOT NULL,   -- idempotency_records.id
    token TEXT,                -- of the claim, as there; what follows is NULL where there was no renewal
    clock INTEGER,             -- of the times
    renewals INTEGER NOT NULL, -- so far, of both files
    lease INTEGER,             -- milliseconds
    lease_until INTEGER,       -- since the last renewal, as the one below; 0 where the lease is over by every clock
    expires_at INTEGER,        -- without regard to a claim that never does
    is_over INTEGER NOT NULL   -- the claim is taken over or deleted: it cannot be renewed any more
) STRICT;
CREATE TABLE IF NOT EXISTS idempotency_leases_file (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL
) STRICT;
INSERT OR IGNORE INTO idempotency_leases_file (id, name) VALUES (1, lower(hex(randomblob(16))));
";

pub(super) const NAME: &str = "SELECT name FROM main.idempotency_leases_file";

/// Gives the file a new name, so that no connection takes it for an earlier file.
pub(super) const RENAME: &str =
    "UPDATE main.idempotency_leases_file SET name = lower(hex(randomblob(16))) RETURNING name";

/// Changes nothing, but is a write. On a file that cannot be written, other statements succeed if they change nothing.
pub(super) const TOUCH: &str = "UPDATE main.idempotency_leases_file SET name = name";

pub(super) const DELETE_ALL: &str = "DELETE FROM main.idempotency_leases";

/// Selects whether this file has the name of the file that the database knows, and the number of the known file in the
/// file system.
pub(super) const IS_CURRENT: &str = "SELECT own.name = known.name, known.inode \
     FROM main.idempotency_leases_file AS own, records.idempotency_leases_file AS known";

// `main` is locked before the snapshot of `records` is taken, because SQLite begins transactions in the order of its
// files.
pub(super) const RENEW: &str = "\
    INSERT INTO main.idempotency_leases (id, record, token, clock, renewals, lease, lease_until, expires_at, is_over) \
    SELECT r.lease_id, r.id, r.token, ?2, max(r.renewals, coalesce(l.renewals, 0)) + 1, renewal.lease, \
    CASE renewal.lease WHEN 0 THEN 0 ELSE ?1 + renewal.lease END, ?1 + r.claim_ttl, 0 \
    FROM (SELECT value ->> 0 AS key, value ->> 1 AS token, value ->> 2 AS lease FROM json_each(?3)) AS renewal \
    CROSS JOIN records.idempotency_records AS r ON r.key = renewal.key \
    LEFT JOIN main.idempotency_leases AS l ON l.id = r.lease_id \
    WHERE r.token = renewal.token AND r.state = 'claimed' AND r.lease_id IS NOT NULL \
    AND (max(r.expires_at, coalesce(l.expires_at, 0)) > ?1 OR coalesce(l.clock, r.clock) <> ?2) \
    ON CONFLICT (id) DO UPDATE SET token = excluded.token, clock = excluded.clock, renewals = excluded.renewals, \
    lease = excluded.lease, lease_until = excluded.lease_until, expires_at = excluded.expires_at WHERE is_over = 0 \
    RETURNING token";

/// Ends leases that have no more renewals than were seen. With ?1, they can no longer be renewed. The clock of the
/// renewals does not matter.
pub(super) const END: &str = "\
    INSERT INTO main.idempotency_leases (id, record, renewals, lease_until, is_over) \
    SELECT value ->> 'lease', value ->> 'record', value ->> 'renewals', 0, ?1 FROM json_each(?2) WHERE true \
    ON CONFLICT (id) DO UPDATE SET renewals = excluded.renewals, lease_until = 0, is_over = max(is_over, excluded.is_over) \
    WHERE renewals <= excluded.renewals RETURNING id";

/// The columns of a renewal, in the order in which the macro `renewals` of `schema` reads them.
macro_rules! renewals {
    () => {
        "json_array(id, lease_until, expires_at, clock, renewals, lease)"
    };
}

pub(super) const ONE: &str =
    concat!("SELECT json_array(", renewals!(), "), renewals, is_over FROM main.idempotency_leases WHERE id = ?1");

pub(super) const ALL: &str = concat!("SELECT json_group_array(", renewals!(), ") FROM main.idempotency_leases");

/// Selects leases whose times the clock ?1 cannot compare, and that are not known to be over.
pub(super) const OF_OTHER_CLOCKS: &str = "\
    SELECT r.lease_id, r.id, max(r.renewals, coalesce(l.renewals, 0)), coalesce(l.lease, r.lease) \
    FROM records.idempotency_records AS r \
    LEFT JOIN main.idempotency_leases AS l ON l.id = r.lease_id AND l.renewals >= r.renewals \
    WHERE r.state = 'claimed' AND r.clock <> ?1 AND r.lease_id IS NOT NULL \
    AND coalesce(l.clock, r.clock) <> ?1 AND coalesce(l.lease_until, r.lease_until) > 0";

/// Deletes the expired leases of claims that have ended.
pub(super) const DELETE_EXPIRED: &str = "\
    DELETE FROM main.idempotency_leases AS l WHERE coalesce(lease_until, 0) <= ?1 AND NOT EXISTS (\
     SELECT 1 FROM records.idempotency_records AS r WHERE r.id = l.record AND r.lease_id = l.id AND r.state = 'claimed')";
