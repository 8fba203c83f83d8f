-- The tables of `idempotent-runtime`. `PostgresStore::migrate` runs this file; run it yourself if your migrations are
-- your own affair. The schema may have another name: `PostgresStore::sql` gives the SQL for the one that the store was
-- told with `PostgresStore::builder(pool).schema("…")`.

CREATE SCHEMA IF NOT EXISTS "idempotency";

CREATE TABLE "idempotency".schema_version (
    id integer PRIMARY KEY CHECK (id = 1),
    version integer NOT NULL
);
INSERT INTO "idempotency".schema_version (id, version) VALUES (1, 1);

CREATE TABLE "idempotency".records (
    digest bytea PRIMARY KEY,        -- SHA-256 of the key: a key may be longer than what an index takes
    id bigint GENERATED ALWAYS AS IDENTITY, -- names a row in logs, where keys do not belong
    key text NOT NULL,               -- scope/@caller/key, percent-encoded
    state text NOT NULL,             -- 'claimed' or 'completed'; 'given back': see 2.sql
    fingerprint text NOT NULL,       -- SHA-256, 64 hexadecimal digits
    token text NOT NULL,             -- of the claim, kept by its record, 32 hexadecimal digits
    attempt integer NOT NULL,        -- 1, and one more for each claim whose lease ran out
    claim_ttl bigint NOT NULL,       -- milliseconds; what a renewal adds to now for expires_at
    awaited boolean NOT NULL DEFAULT false, -- whether a waiter of some process is to be notified
    lease_until timestamptz,
    expires_at timestamptz NOT NULL,
    recorded_at timestamptz,
    status integer,
    headers jsonb,                   -- [[name, value], …]
    body bytea                       -- NULL in a completed row: it was too large to record
) WITH (
    -- A row is written twice and deleted once: room for the second version, and a vacuum that keeps up.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.1
);

CREATE INDEX records_expires_at ON "idempotency".records (expires_at);
