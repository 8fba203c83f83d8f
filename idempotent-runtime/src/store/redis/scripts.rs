//! The scripts: one for each operation, so that each operation is atomic and one round trip. Many completions can be one script.
//!
//! A value is JSON. Its first member is the state and its second the token, so a script recognises a record by its
//! first bytes. It never decodes a record, whose body may be megabytes.
//!
//! A claim that expires has a lease and a time to live, which begin together. The lease has expired when more of the
//! time to live has passed than the lease is long. Only the server counts the time to live down. So the value of a
//! claim is known before it arrives, and a plain `SET` can write the first one.
//!
//! A claim that never expires has no time to live. Its value contains the end of its lease by the server's own clock,
//! so only a script can write it. The names of all these claims are in a set, so that unknown outcomes are found
//! without a scan of the whole server. In a Cluster, the set is mostly on another server. A script that cannot reach it
//! says so, and the store changes the set itself. Claims that expire have other sets: see `index`.

use redis::Script;

/// Parses exactly the text that is written for a claim. Any other value is no claim. It uses a pattern, because
/// decoding JSON takes several times as long.
macro_rules! claim_in {
    () => {
        r#"
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function claim_in(value)
    local head = '^{"state":"claimed","token":"(%x+)","fingerprint":"([^"\\]*)","attempt":(%d+),'
    local token, fingerprint, attempt, lease_until = string.match(value or '', head .. '"lease_until":(%d+)}$')
    if token then
        local is_leased = now() < tonumber(lease_until)
        return {token = token, fingerprint = fingerprint, attempt = tonumber(attempt), is_leased = is_leased}
    end
    local lease, ttl
    token, fingerprint, attempt, lease, ttl = string.match(value or '', head .. '"lease":(%d+),"ttl":(%d+)}$')
    if not token then return nil end
    local left = redis.call('PTTL', KEYS[1])
    -- A key that was made persistent has lost its lease: it may still run.
    local is_leased = left < 0 or left > ttl - lease
    return {token = token, fingerprint = fingerprint, attempt = tonumber(attempt), is_leased = is_leased, ttl = ttl}
end
"#
    };
}

macro_rules! write {
    () => {
        r#"
-- Without a time to live, it never expires.
local function write(token, fingerprint, attempt, lease, ttl)
    local claim = '{"state":"claimed","token":"' .. token .. '","fingerprint":"' .. fingerprint ..
        '","attempt":' .. string.format('%.0f', attempt)
    if ttl then
        redis.call('SET', KEYS[1], claim .. ',"lease":' .. lease .. ',"ttl":' .. ttl .. '}', 'PX', ttl)
    else
        redis.call('SET', KEYS[1], claim .. ',"lease_until":' .. string.format('%.0f', now() + lease) .. '}')
    end
end
"#
    };
}

/// Adds a name to a set or removes it, with `SADD`, `SREM` or `ZREM`. The name is that of the first key unless the script gives
/// another one. Returns whether that succeeded.
macro_rules! index {
    () => {
        r"
local function index(command, set, name)
    local done = redis.pcall(command, set, name or KEYS[1])
    return type(done) == 'number'
end
"
    };
}

/// Repeats a write without changing the value. `WAIT` counts the replicas that have the last write of this connection.
/// It does not know an earlier try on another connection.
macro_rules! write_nothing_new {
    () => {
        r"
local function write_nothing_new(value, name)
    name = name or KEYS[1]
    local left = redis.call('PTTL', name)
    if left >= 0 then redis.call('PEXPIRE', name, math.max(left, 1)) else redis.call('SET', name, value) end
end
"
    };
}

/// The keys: the name of the record key, and the name that exists if the token was given back. The arguments: token,
/// fingerprint, lease, ttl, whether a lapsed claim may be taken over, the set of claims that never expire, the set of
/// claims that expire, and the former fingerprint or again the same one.
///
/// Returns one of three answers: the attempt of the claim that was made, as a number; the existing value that is no
/// claim, as a text; or three texts, of which the last one says whether the name must still be added to the set.
const CLAIM: &str = concat!(
    claim_in!(),
    write!(),
    index!(),
    write_nothing_new!(),
    r#"
local ttl = ARGV[4]
if ARGV[5] ~= '1' then ttl = nil end
local function enter_expiring()
    redis.pcall('ZADD', ARGV[7], string.format('%.0f', now() + ttl), KEYS[1])
end
local function acquired(attempt)
    if redis.call('EXISTS', KEYS[2]) == 1 then return {'given_back', '', ''} end
    write(ARGV[1], ARGV[2], attempt, ARGV[3], ttl)
    if ttl then enter_expiring() end
    if ttl or index('SADD', ARGV[6]) then return attempt end
    return {'acquired', string.format('%.0f', attempt), 'enter'}
end
local value = redis.call('GET', KEYS[1])
if not value then return acquired(1) end
local claim = claim_in(value)
if not claim then return value end
if claim.token == ARGV[1] then
    write_nothing_new(value)
    if claim.ttl and ttl then enter_expiring() end
    if claim.ttl or index('SADD', ARGV[6]) then return claim.attempt end
    return {'acquired', string.format('%.0f', claim.attempt), 'enter'}
end
if claim.is_leased then return {'in_flight', claim.fingerprint, ''} end
if claim.fingerprint ~= ARGV[2] and claim.fingerprint ~= ARGV[8] then return {'lapsed', claim.fingerprint, ''} end
if ttl then
    local taken_over = acquired(claim.attempt + 1)
    if type(taken_over) == 'number' and not claim.ttl then index('SREM', ARGV[6]) end
    return taken_over
end
-- What is rejected once must not run later because the claim that it met has expired.
if claim.ttl then
    write(claim.token, claim.fingerprint, claim.attempt, 0, nil)
    index('ZREM', ARGV[7])
end
return {'lapsed', claim.fingerprint, index('SADD', ARGV[6]) and '' or 'enter'}
"#
);

/// The arguments: token, lease.
const RENEW: &str = concat!(
    claim_in!(),
    write!(),
    r"
local claim = claim_in(redis.call('GET', KEYS[1]))
if not claim or claim.token ~= ARGV[1] then return 0 end
write(claim.token, claim.fingerprint, claim.attempt, ARGV[2], claim.ttl)
return 1
"
);

// A user who may not publish must not turn a successful write into an error, because waiting requests also check by
// themselves. If no client of the server has received the first message, none would receive the next ones of the batch.
/// Completes the claims of all keys. The arguments: channel, the set of claims that never expire, the set of claims that
/// expire, the messages of all keys in one text; then for each key: the record's value and its ttl. Each argument costs the
/// server time, so the token is read from the value.
///
/// Returns an answer for each key, or the only answer instead of a list of one. The answer is 2 if the name must still be
/// removed from the set, and -1 if the key among several failed. A key that fails changes nothing about the others.
const COMPLETE: &str = concat!(
    index!(),
    write_nothing_new!(),
    r#"
local call, find, sub = redis.call, string.find, string.sub
local is_heard, expiring = true, {}
local function complete(number)
    local name, record, ttl = KEYS[number], ARGV[2 * number + 3], ARGV[2 * number + 4]
    local value = call('GET', name)
    if not value then return 0 end
    -- A search makes no copy of the text. The tokens are compared together with the quotes after them.
    if find(value, '{"state":"claimed","token":"', 1, true) == 1 and sub(value, 29, 61) == sub(record, 31, 63) then
        call('SET', name, record, 'PX', ttl)
        if is_heard then
            is_heard = redis.pcall('PUBLISH', ARGV[1], sub(ARGV[4], 64 * number - 63, 64 * number)) ~= 0
        end
        if find(value, '"lease_until":', 62, true) then
            if not index('SREM', ARGV[2], name) then return 2 end
        else
            expiring[#expiring + 1] = name
        end
        return 1
    end
    -- The record has the same state and token as its own first copy.
    if sub(value, 1, 63) ~= sub(record, 1, 63) then return 0 end
    write_nothing_new(value, name)
    return 1
end
local answers
if #KEYS == 1 then
    answers = complete(1)
else
    answers = {}
    for number = 1, #KEYS do
        local is_done, answer = pcall(complete, number)
        answers[number] = is_done and answer or -1
    end
end
if #expiring > 0 then redis.pcall('ZREM', ARGV[3], unpack(expiring)) end
return answers
"#
);

/// The keys: the name of the record key, the name that makes a late claim of the token fail, and, if the script may
/// arrive twice, the name that keeps its answer. The arguments: token, channel, the set of claims that never expire,
/// the time for which a late claim fails, whether the claim may arrive once more, the set of claims that expire, the
/// message, and the time for which the answer is kept.
///
/// Returns 2 if the name must still be removed from the set.
const RELEASE: &str = concat!(
    index!(),
    r#"
local answered = KEYS[3] and redis.call('GET', KEYS[3])
if answered then return tonumber(answered) end
local value = redis.call('GET', KEYS[1]) or ''
local claim = '{"state":"claimed","token":"' .. ARGV[1] .. '"'
if string.sub(value, 1, #claim) == claim then
    local is_permanent = string.find(value, '"lease_until":', 1, true)
    redis.call('DEL', KEYS[1])
    if is_permanent and ARGV[5] == '1' then redis.call('SET', KEYS[2], '', 'PX', ARGV[4]) end
    redis.pcall('PUBLISH', ARGV[2], ARGV[7])
    if not is_permanent then index('ZREM', ARGV[6]) end
    local answer = is_permanent and not index('SREM', ARGV[3]) and 2 or 1
    if KEYS[3] then redis.call('SET', KEYS[3], string.format('%d', answer), 'PX', ARGV[8]) end
    return answer
end
-- Of a claim that has been completed, nothing is on its way.
local own_record = '{"state":"completed","token":"' .. ARGV[1] .. '"'
if string.sub(value, 1, #own_record) ~= own_record then redis.call('SET', KEYS[2], '', 'PX', ARGV[4]) end
return 0
"#
);

/// The argument: ttl.
const EXTEND: &str = r#"
local record = '{"state":"completed"'
if redis.call('GETRANGE', KEYS[1], 0, #record - 1) ~= record then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
"#;

/// Returns the value, its remaining time to live, and the server's time.
const LOOK: &str = r"
local time = redis.call('TIME')
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), time[1] * 1000 + math.floor(time[2] / 1000)}
";

/// Returns the same for each name, with only the beginning and the end of the value. The arguments: the lengths of
/// both.
const SUMMARIES: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local summaries = {}
for number, name in ipairs(KEYS) do
    local head = redis.call('GETRANGE', name, 0, ARGV[1] - 1)
    if head == '' and redis.call('EXISTS', name) == 0 then head = false end
    summaries[number] = {head, redis.call('GETRANGE', name, -ARGV[2], -1), redis.call('PTTL', name), now}
end
return summaries
";

/// The keys: the name of the record key, and the name that keeps the answer in case the script arrives twice. The
/// arguments: the set of claims that never expire, the set of claims that expire, and the time for which the answer is
/// kept, or 0 if the script is sent once.
///
/// Returns 2 if the name must still be removed from the set.
const PURGE: &str = concat!(
    index!(),
    r"
local answered = redis.call('GET', KEYS[2])
if answered then return tonumber(answered) end
local purged = redis.call('DEL', KEYS[1])
if ARGV[3] ~= '0' then redis.call('SET', KEYS[2], string.format('%d', purged), 'PX', ARGV[3]) end
if purged > 0 then index('ZREM', ARGV[2]) end
if purged > 0 and not index('SREM', ARGV[1]) then return 2 end
return purged
"
);

/// The keys are those of [`PURGE`]. The arguments: the claim's token, the record's value or nothing, ttl, channel, the
/// set of claims that never expire, the record's token, the set of claims that expire, the message, and the time for
/// which the second key keeps that the claim was resolved, or 0 if that need not be kept.
///
/// Returns 1 if the claim was resolved, 2 if its name must still be removed from the set, 3 if its lease has not
/// expired, and 0 if the key has no such claim.
const RESOLVE: &str = concat!(
    claim_in!(),
    index!(),
    write_nothing_new!(),
    r#"
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
local value = redis.call('GET', KEYS[1])
if not value then return 0 end
local claim = claim_in(value)
if claim and claim.token == ARGV[1] then
    if claim.is_leased then return 3 end
    if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
    if ARGV[9] ~= '0' then redis.call('SET', KEYS[2], '', 'PX', ARGV[9]) end
    redis.pcall('PUBLISH', ARGV[4], ARGV[8])
    if claim.ttl then index('ZREM', ARGV[7]) end
    if not claim.ttl and not index('SREM', ARGV[5]) then return 2 end
    return 1
end
local own_record = '{"state":"completed","token":"' .. ARGV[6] .. '"'
if ARGV[2] == '' or string.sub(value, 1, #own_record) ~= own_record then return 0 end
write_nothing_new(value)
return 1
"#
);

pub(super) struct Scripts {
    pub(super) claim: Source,
    pub(super) renew: Source,
    pub(super) complete: Source,
    pub(super) extend: Source,
    pub(super) release: Source,
    pub(super) look: Source,
    pub(super) summaries: Source,
    pub(super) purge: Source,
    pub(super) resolve: Source,
}

impl Scripts {
    /// Builds the scripts. From version 7 on, a script can ask to write to a full server too. A granted claim can then
    /// be renewed and completed, and only new claims are rejected.
    pub(super) fn new(may_overcommit: bool) -> Self {
        let granted = if may_overcommit { "#!lua flags=allow-oom\n" } else { "" };
        Self {
            claim: Source::new(CLAIM.to_owned()),
            renew: Source::new(format!("{granted}{RENEW}")),
            complete: Source::new(format!("{granted}{COMPLETE}")),
            extend: Source::new(format!("{granted}{EXTEND}")),
            release: Source::new(format!("{granted}{RELEASE}")),
            look: Source::new(LOOK.to_owned()),
            summaries: Source::new(SUMMARIES.to_owned()),
            purge: Source::new(PURGE.to_owned()),
            resolve: Source::new(format!("{granted}{RESOLVE}")),
        }
    }
}

/// The text of a script, and the hash by which a server knows a script that it has run before.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) text: String,
    pub(super) hash: String,
}

impl Source {
    fn new(text: String) -> Self {
        let hash = Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }
}
