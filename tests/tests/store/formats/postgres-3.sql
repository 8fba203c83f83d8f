-- What changes while a row lives is in no index, and in no condition of one: PostgreSQL can put the new version of a renewed or
-- completed row on its page, and touch no index (a HOT update).
--
-- `delete_after` is never before `expires_at`, and as long as it may stay where it is, it does. The rows of claims that never
-- expire have 'infinity' in it, and so do unknown outcomes.
ALTER TABLE "idempotency".records
    ADD COLUMN delete_after timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN guards_token boolean NOT NULL DEFAULT false; -- of a claim that was given back, and of one that never expires
UPDATE "idempotency".records
    SET delete_after = expires_at, guards_token = (state = 'given back' OR expires_at = 'infinity');

DROP INDEX "idempotency".records_expires_at;
CREATE INDEX records_delete_after ON "idempotency".records (delete_after);
DROP INDEX "idempotency".records_given_back;
CREATE UNIQUE INDEX records_given_back ON "idempotency".records (substr(digest, 1, 32), token) WHERE guards_token;

UPDATE "idempotency".schema_version SET version = 3;
