//! The tables, and the conversion of the tables of an older version.

/// The version that this library reads and writes.
pub(super) const VERSION: i64 = 2;

/// Selects whether a store has opened this file before.
pub(super) const EXISTS: &str = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'idempotency_schema'";

pub(super) const STORED_VERSION: &str = "SELECT version FROM idempotency_schema";

/// Changes nothing, but is a write. On a file that cannot be written, `BEGIN IMMEDIATE` alone succeeds.
pub(super) const TOUCH: &str = "UPDATE idempotency_schema SET version = version";

// The version has a table of its own, because `PRAGMA user_version` belongs to the application if the file is its
// database.
//
// `id` names a damaged row without revealing its key. The table has row ids because rows contain whole bodies: without
// row ids, bodies would be in the inner pages of the tree. The body is the last column, because reading a column after
// it would read the whole body.
pub(super) const CREATE: [&str; 2] = [TABLES, OWNERS];

const TABLES: &str = "
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
    attempt INTEGER NOT NULL,    -- 1, and one more for each claim whose lease expired
    lease_id INTEGER,            -- of the claim, in the file of leases
    clock INTEGER NOT NULL DEFAULT 0,    -- of the times of a claim; 0 is that of no process
    renewals INTEGER NOT NULL DEFAULT 0, -- of the claim, as far as this row tells
    claim_ttl INTEGER NOT NULL,  -- milliseconds; what a renewal adds to now for expires_at
    lease INTEGER,               -- milliseconds
    lease_until INTEGER,         -- milliseconds since 1970, as all below; without the renewals; 0: over by every clock
    expires_at INTEGER NOT NULL,
    recorded_at INTEGER,
    status INTEGER,
    owner BLOB,                  -- a digest of the client, if the store had a bound
    counted_bytes INTEGER NOT NULL DEFAULT 0, -- what the row takes, roughly
    headers TEXT,                -- JSON
    body BLOB                    -- NULL in a completed row: it was too large to record
) STRICT;
CREATE TABLE idempotency_clocks (
    id INTEGER PRIMARY KEY,      -- of one boot of the machine; no row is deleted, because a process may have it
    began_at INTEGER NOT NULL    -- when that boot began, by what the wall clock said at its first opening
) STRICT;
CREATE TABLE idempotency_leases_file (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,          -- that the file of leases has given itself
    inode INTEGER NOT NULL       -- its number in the file system
) STRICT;
CREATE INDEX idempotency_records_expires_at ON idempotency_records (expires_at);
CREATE INDEX idempotency_records_claimed ON idempotency_records (expires_at, clock) WHERE state = 'claimed';
INSERT INTO idempotency_schema (id, version) VALUES (1, 2);
";

/// Converts version 1. Existing rows count for no client.
pub(super) const FROM_1: [&str; 2] = [ADD_OWNERS, OWNERS];

const ADD_OWNERS: &str = "
ALTER TABLE idempotency_records ADD COLUMN owner BLOB;
ALTER TABLE idempotency_records ADD COLUMN counted_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE idempotency_schema SET version = 2;
";

// Triggers do the counting, so that no statement can forget it. They do nothing for a row without an owner. They do not
// read the body.
const OWNERS: &str = "
CREATE TABLE idempotency_owners (
    owner BLOB PRIMARY KEY,
    bytes INTEGER NOT NULL       -- of the owner's rows
) STRICT, WITHOUT ROWID;
CREATE TRIGGER idempotency_owner_of_new_row AFTER INSERT ON idempotency_records WHEN NEW.owner IS NOT NULL BEGIN
    INSERT INTO idempotency_owners (owner, bytes) VALUES (NEW.owner, NEW.counted_bytes)
        ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER idempotency_owner_of_changed_row AFTER UPDATE OF owner, counted_bytes ON idempotency_records
    WHEN OLD.owner IS NOT NULL OR NEW.owner IS NOT NULL BEGIN
    INSERT INTO idempotency_owners (owner, bytes) SELECT NEW.owner, NEW.counted_bytes WHERE NEW.owner IS NOT NULL
        ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
    UPDATE idempotency_owners SET bytes = bytes - OLD.counted_bytes WHERE owner = OLD.owner;
    DELETE FROM idempotency_owners WHERE owner = OLD.owner AND bytes <= 0;
END;
CREATE TRIGGER idempotency_owner_of_deleted_row AFTER DELETE ON idempotency_records WHEN OLD.owner IS NOT NULL BEGIN
    UPDATE idempotency_owners SET bytes = bytes - OLD.counted_bytes WHERE owner = OLD.owner;
    DELETE FROM idempotency_owners WHERE owner = OLD.owner AND bytes <= 0;
END;
";
