//! One script for each operation, so that each is atomic and one round trip.
//!
//! A value is JSON whose first member is its state and whose second is its token, so that a script tells a record by its
//! first bytes and never decodes one: its body may be megabytes. Claims are small, and decoded.

use redis::Script;

/// What a claim's value begins with, as written by [`CLAIM`].
macro_rules! common {
    () => {
        r#"
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function claim_in(value)
    if not value or string.sub(value, 1, 18) ~= '{"state":"claimed"' then return nil end
    local is_json, claim = pcall(cjson.decode, value)
    if is_json and type(claim.token) == 'string' and type(claim.fingerprint) == 'string'
        and type(claim.attempt) == 'number' and type(claim.lease_until) == 'number' and type(claim.ttl) == 'number' then
        return claim
    end
end
local function write(claim)
    redis.call('SET', KEYS[1], string.format(
        '{"state":"claimed","token":"%s","fingerprint":"%s","attempt":%.0f,"lease_until":%.0f,"ttl":%.0f}',
        claim.token, claim.fingerprint, claim.attempt, claim.lease_until, claim.ttl), 'PX', claim.ttl)
end
-- WAIT counts who has this connection's last write: an earlier try's, made on another connection, is not known to it.
local function write_nothing_new()
    local left = redis.call('PTTL', KEYS[1])
    if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
end
-- A user who may not publish must not turn a write that was made into an error: waiters look by themselves too.
local function tell(channel)
    redis.pcall('PUBLISH', channel, KEYS[1])
end
local function held_by(token)
    local claim = claim_in(redis.call('GET', KEYS[1]))
    if claim and claim.token == token then return claim end
end
"#
    };
}

/// Arguments: token, fingerprint, lease, ttl, whether a lapsed claim may be taken over.
const CLAIM: &str = concat!(
    common!(),
    r"
local value = redis.call('GET', KEYS[1])
local attempt = 1
if value then
    local claim = claim_in(value)
    if not claim then return {'standing', value} end
    if claim.token == ARGV[1] then
        write_nothing_new()
        return {'acquired', claim.attempt}
    end
    if claim.lease_until > now() then return {'in_flight', claim.fingerprint} end
    if ARGV[5] ~= '1' or claim.fingerprint ~= ARGV[2] then return {'lapsed', claim.fingerprint} end
    attempt = claim.attempt + 1
end
write({token = ARGV[1], fingerprint = ARGV[2], attempt = attempt, lease_until = now() + ARGV[3], ttl = tonumber(ARGV[4])})
return {'acquired', attempt}
"
);

/// Arguments: token, lease.
const RENEW: &str = concat!(
    common!(),
    r"
local claim = held_by(ARGV[1])
if not claim then return 0 end
claim.lease_until = now() + ARGV[2]
write(claim)
return 1
"
);

/// Arguments: token, the record's value, ttl, channel.
const COMPLETE: &str = concat!(
    common!(),
    r#"
local own_record = '{"state":"completed","token":"' .. ARGV[1] .. '"'
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, #own_record) == own_record then
    write_nothing_new()
    return 1
end
local claim = claim_in(value)
if not claim or claim.token ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
tell(ARGV[4])
return 1
"#
);

/// Arguments: token, channel.
const RELEASE: &str = concat!(
    common!(),
    r"
if not held_by(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
tell(ARGV[2])
return 1
"
);

/// The value, what is left of its life, and the time.
const LOOK: &str = concat!(
    common!(),
    r"
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), now()}
"
);

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
