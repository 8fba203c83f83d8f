-- What changes while a row lives is in no index, and in no condition of one: PostgreSQL can put the new version of a renewed or
-- completed row on its page, and touch no index (a HOT update).
--
-- `delete_after` is never before `expires_at`, and as long as it may stay where it is, it does. The rows of claims that never
-- expire have 'infinity' in it, and so do unknown outcomes.
-- The table is locked until the end. So a row that expires within a day is not rewritten: it is deleted after that day.
ALTER TABLE "idempotency".records
    ADD COLUMN delete_after timestamptz NOT NULL DEFAULT now() + interval '1 day',
    ADD COLUMN guards_token boolean NOT NULL DEFAULT false; -- of a claim that was given back, and of one that never expires
ALTER TABLE "idempotency".records ALTER COLUMN delete_after SET DEFAULT now();
UPDATE "idempotency".records
    SET delete_after = expires_at, guards_token = (state = 'given back' OR expires_at = 'infinity')
    WHERE state = 'given back' OR expires_at > now() + interval '1 day';

DROP INDEX "idempotency".records_expires_at;
CREATE INDEX records_delete_after ON "idempotency".records (delete_after);
DROP INDEX "idempotency".records_given_back;
CREATE UNIQUE INDEX records_given_back ON "idempotency".records (substr(digest, 1, 32), token) WHERE guards_token;

UPDATE "idempotency".schema_version SET version = 3;
