-- As a program of version 1 writes them: a record, one without its body, a claim that is held, an unknown outcome.
INSERT INTO "idempotency".records (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, recorded_at, status, headers, body) VALUES
    (sha256('formats/@a%20caller/recorded'), 'formats/@a%20caller/recorded', 'completed', '0707070707070707070707070707070707070707070707070707070707070707', '00000000000000000000000000000001', 1, 3155760000000,
    NULL, now() + interval '36525 days', timestamptz 'epoch' + 1700000000123 * interval '1 millisecond', 201, '[["content-type","text/plain"],["x-bytes",{"base64":"/yByYXc="}]]', '\x7061696400c3bc');
INSERT INTO "idempotency".records (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, recorded_at, status, headers, body) VALUES
    (sha256('formats/@a%20caller/without-body'), 'formats/@a%20caller/without-body', 'completed', '0707070707070707070707070707070707070707070707070707070707070707', '00000000000000000000000000000002', 1, 3155760000000,
    NULL, now() + interval '36525 days', timestamptz 'epoch' + 1700000000123 * interval '1 millisecond', 201, '[["content-type","text/plain"],["x-bytes",{"base64":"/yByYXc="}]]', NULL);
INSERT INTO "idempotency".records (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, recorded_at, status, headers, body) VALUES
    (sha256('formats/@a%20caller/running'), 'formats/@a%20caller/running', 'claimed', '0707070707070707070707070707070707070707070707070707070707070707', '00000000000000000000000000000003', 1, 3155760000000,
    now() + interval '1 hour', now() + interval '36525 days', NULL, NULL, NULL, NULL);
INSERT INTO "idempotency".records (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at, recorded_at, status, headers, body) VALUES
    (sha256('formats/@a%20caller/unknown'), 'formats/@a%20caller/unknown', 'claimed', '0707070707070707070707070707070707070707070707070707070707070707', '00000000000000000000000000000004', 1, 3155760000000,
    now() - interval '1 second', 'infinity', NULL, NULL, NULL, NULL);
