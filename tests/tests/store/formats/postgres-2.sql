-- Of a claim that was given back before it arrived, one row keeps it from arriving: its digest is that of the key followed by
-- the token, its state is 'given back', and its key is empty. The index lets no claim that never expires arrive beside that row,
-- whatever a statement has seen before. It takes no entry of any other claim and of no record.
CREATE UNIQUE INDEX records_given_back ON "idempotency".records (substr(digest, 1, 32), token)
    WHERE state = 'given back' OR expires_at = 'infinity';

UPDATE "idempotency".schema_version SET version = 2;
