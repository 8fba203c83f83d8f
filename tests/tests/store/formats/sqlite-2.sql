-- As version 2 writes them: a record, one without its body, a claim that is held, and an unknown outcome.
CREATE TABLE idempotency_clocks (
    id INTEGER PRIMARY KEY,      -- of one boot of the machine; no row is deleted, because a process may have it
    began_at INTEGER NOT NULL    -- when that boot began, by what the wall clock said at its first opening
) STRICT;
INSERT INTO "idempotency_clocks" VALUES(2648183099341816450,1795828749244);
CREATE TABLE idempotency_leases_file (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,          -- that the file of leases has given itself
    inode INTEGER NOT NULL       -- its number in the file system
) STRICT;
INSERT INTO "idempotency_leases_file" VALUES(1,'41e6e4c300fe8aa3dd41f7398d992bfd',10165916);
CREATE TABLE idempotency_records (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,    -- scope/@caller/key, percent-encoded
    state TEXT NOT NULL,         -- 'claimed' or 'completed'
    fingerprint TEXT NOT NULL,   -- SHA-256, 64 hexadecimal digits
    token TEXT NOT NULL,         -- of the claim, kept by its record, 32 hexadecimal digits
    attempt INTEGER NOT NULL,    -- 1, and one more for each claim whose lease ran out
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
INSERT INTO "idempotency_records" VALUES(1,'formats/@a%20caller/recorded','completed','0707070707070707070707070707070707070707070707070707070707070707','00000000000000000000000000000001',1,-7955145332940805605,2648183099341816450,0,3155760000000,3600000,NULL,4951645965093,1700000000123,201,NULL,448,'[["content-type","text/plain"],["x-bytes",{"base64":"/yByYXc="}]]',X'7061696400C3BC');
INSERT INTO "idempotency_records" VALUES(2,'formats/@a%20caller/without-body','completed','0707070707070707070707070707070707070707070707070707070707070707','00000000000000000000000000000002',1,3609848291235381447,2648183099341816450,0,3155760000000,3600000,NULL,4951645965100,1700000000123,201,NULL,449,'[["content-type","text/plain"],["x-bytes",{"base64":"/yByYXc="}]]',NULL);
INSERT INTO "idempotency_records" VALUES(3,'formats/@a%20caller/running','claimed','0707070707070707070707070707070707070707070707070707070707070707','00000000000000000000000000000003',1,5858568682028198921,2648183099341816450,0,3155760000000,3600000,1795889565103,4951645965103,NULL,NULL,NULL,0,NULL,NULL);
INSERT INTO "idempotency_records" VALUES(4,'formats/@a%20caller/unknown','claimed','0707070707070707070707070707070707070707070707070707070707070707','00000000000000000000000000000004',1,3592576264902433388,2648183099341816450,0,3155760000000,3600000,0,9223372036854775807,NULL,NULL,NULL,0,NULL,NULL);
CREATE TABLE idempotency_schema (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO "idempotency_schema" VALUES(1,2);
CREATE INDEX idempotency_records_expires_at ON idempotency_records (expires_at);
CREATE INDEX idempotency_records_claimed ON idempotency_records (expires_at, clock) WHERE state = 'claimed';
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
