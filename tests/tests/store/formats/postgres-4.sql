-- Claims are found without a look at every record. A claim that is completed soon must not pay for that: its completion changes no
-- index (a HOT update). So an index of all claims is none: a row is entered in it when it is still a claim after ten thousand
-- further ones. Until then, its number finds it.
--
-- How far the rows have been looked at is the `claim_ttl` of the row without a digest, whose state is 'given back'.
ALTER TABLE "idempotency".records
    ADD COLUMN lingers boolean NOT NULL DEFAULT false; -- it was a claim when it was looked at; it may be a record since
CREATE UNIQUE INDEX records_id ON "idempotency".records (id);
CREATE INDEX records_lingers ON "idempotency".records (digest) WHERE lingers;
UPDATE "idempotency".records SET lingers = true WHERE state = 'claimed';
INSERT INTO "idempotency".records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, delete_after)
    SELECT '', '', 'given back', '', '', 0, max(id), 'infinity', 'infinity' FROM "idempotency".records HAVING count(*) > 0;

UPDATE "idempotency".schema_version SET version = 4;
