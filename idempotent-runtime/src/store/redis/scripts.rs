//! One script for each operation, so that each is atomic and one round trip.
//!
//! A value is JSON whose first member is its state and whose second is its token, so that a script tells a record by its
//! first bytes and never decodes one: its body may be megabytes.
//!
//! A claim's lease has run out when more of the key's time to live has passed than the lease is long: both began together,
//! and the server alone counts the time to live down. So a claim's value is known before it arrives, and a plain `SET` can
//! write the first one.

use redis::Script;

/// Exactly what is written for a claim; anything else is none. A pattern, since decoding JSON takes several times as long.
macro_rules! claim_in {
    () => {
        r#"
local function claim_in(value)
    local token, fingerprint, attempt, lease, ttl = string.match(value or '',
        '^{"state":"claimed","token":"(%x+)","fingerprint":"([^"\\]*)","attempt":(%d+),"lease":(%d+),"ttl":(%d+)}$')
    if not token then return nil end
    local left = redis.call('PTTL', KEYS[1])
    -- A key that somebody made persistent tells nothing of its lease: it may still run.
    local is_leased = left < 0 or left > ttl - lease
    return {token = token, fingerprint = fingerprint, attempt = tonumber(attempt), is_leased = is_leased, ttl = ttl}
end
"#
    };
}

macro_rules! write {
    () => {
        r#"
local function write(token, fingerprint, attempt, lease, ttl)
    redis.call('SET', KEYS[1], '{"state":"claimed","token":"' .. token .. '","fingerprint":"' .. fingerprint ..
        '","attempt":' .. string.format('%.0f', attempt) .. ',"lease":' .. lease .. ',"ttl":' .. ttl .. '}', 'PX', ttl)
end
"#
    };
}

/// WAIT counts who has this connection's last write: an earlier try's, made on another connection, is not known to it.
macro_rules! write_nothing_new {
    () => {
        r"
local function write_nothing_new()
    local left = redis.call('PTTL', KEYS[1])
    if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
end
"
    };
}

/// Arguments: token, fingerprint, lease, ttl, whether a lapsed claim may be taken over.
///
/// A number is the attempt of the claim that was made, a text what stands there and is no claim.
const CLAIM: &str = concat!(
    claim_in!(),
    write!(),
    write_nothing_new!(),
    r#"
local value = redis.call('GET', KEYS[1])
if not value then
    write(ARGV[1], ARGV[2], 1, ARGV[3], ARGV[4])
    return 1
end
local claim = claim_in(value)
if not claim then return value end
if claim.token == ARGV[1] then
    write_nothing_new()
    return claim.attempt
end
if claim.is_leased then return {'in_flight', claim.fingerprint} end
if ARGV[5] ~= '1' or claim.fingerprint ~= ARGV[2] then return {'lapsed', claim.fingerprint} end
write(ARGV[1], ARGV[2], claim.attempt + 1, ARGV[3], ARGV[4])
return claim.attempt + 1
"#
);

/// Arguments: token, lease.
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

// A user who may not publish must not turn a write that was made into an error: waiters look by themselves too.
/// Arguments: token, the record's value, ttl, channel.
const COMPLETE: &str = concat!(
    r#"
local value = redis.call('GET', KEYS[1])
if not value then return 0 end
local claim = '{"state":"claimed","token":"' .. ARGV[1] .. '"'
if string.sub(value, 1, #claim) == claim then
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    redis.pcall('PUBLISH', ARGV[4], KEYS[1])
    return 1
end
local own_record = '{"state":"completed","token":"' .. ARGV[1] .. '"'
if string.sub(value, 1, #own_record) ~= own_record then return 0 end
"#,
    write_nothing_new!(),
    r"
write_nothing_new()
return 1
"
);

/// Arguments: token, channel.
const RELEASE: &str = r#"
local claim = '{"state":"claimed","token":"' .. ARGV[1] .. '"'
local value = redis.call('GET', KEYS[1])
if not value or string.sub(value, 1, #claim) ~= claim then return 0 end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', ARGV[2], KEYS[1])
return 1
"#;

/// The value, and what is left of its life.
const LOOK: &str = r"
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
";

const PURGE: &str = r"return redis.call('DEL', KEYS[1])";

pub(super) struct Scripts {
    pub(super) claim: Source,
    pub(super) renew: Source,
    pub(super) complete: Source,
    pub(super) release: Source,
    pub(super) look: Source,
    pub(super) purge: Source,
}

impl Scripts {
    /// From version 7 on a script may say that it writes to a full server too: a claim that was granted can then be renewed
    /// and completed, and only new ones are refused.
    pub(super) fn new(may_overcommit: bool) -> Self {
        let granted = if may_overcommit { "#!lua flags=allow-oom\n" } else { "" };
        Self {
            claim: Source::new(CLAIM.to_owned()),
            renew: Source::new(format!("{granted}{RENEW}")),
            complete: Source::new(format!("{granted}{COMPLETE}")),
            release: Source::new(format!("{granted}{RELEASE}")),
            look: Source::new(LOOK.to_owned()),
            purge: Source::new(PURGE.to_owned()),
        }
    }
}

/// A script's text and the hash by which a server that has seen it knows it.
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
