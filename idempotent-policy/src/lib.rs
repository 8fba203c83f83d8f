//! The defaults, limits and checks of policies, which the attribute and the builder share. Use the crate
//! `idempotent-runtime`.

mod text;

use std::time::Duration;

/// How long a record is kept.
pub const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a claim is exclusive without a renewal.
pub const LEASE: Duration = Duration::from_secs(30);

/// The header that carries the key.
pub const HEADER: &str = "idempotency-key";

/// The longest key, in characters.
pub const LONGEST_KEY: usize = 255;

/// How many characters a UUID has, hyphens included.
pub const UUID_LENGTH: usize = 36;

/// The statuses that are recorded, both ends of each range included.
pub const STATUSES: &[(u16, u16)] = &[(200, 299), (303, 303)];

/// The methods that are guarded.
pub const METHODS: &[&str] = &["POST", "PUT", "PATCH", "DELETE"];

/// The largest recorded body, in bytes.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// The methods that every server knows (RFC 9110, section 9, and RFC 5789). A policy may name other methods too.
pub const KNOWN_METHODS: &[&str] = &["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// The longest duration of a policy, 100 years. Stores add a duration to their clocks, and the sum must not overflow.
pub const LONGEST: Duration = Duration::from_secs(100 * 8766 * 60 * 60);

/// The shortest ttl.
pub const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// The shortest lease: a shorter one could not be renewed in time.
pub const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// The shortest time that a duplicate waits for a running request.
pub const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Headers that belong to one connection, or that are computed for each answer. No policy can record these headers, and
/// a replay never contains them, whatever the store contains.
pub const NEVER_RECORDED: &[&str] = &[
    "authentication-info",
    "connection",
    "content-length",
    "idempotency-recorded-by",
    "idempotency-recorded-trailer",
    "idempotency-seal",
    "idempotent-recorded",
    "idempotent-replayed",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that identify a client, unless the application names other headers.
pub const CREDENTIAL_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];

/// Headers whose value has a meaning in HTTP. Different requests can have the same value.
pub const HEADERS_OF_HTTP: &[&str] = &[
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "origin",
    "proxy-connection",
    "range",
    "referer",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];

/// Checks a name that appears in logs and stores: a scope, or the name of a store.
///
/// # Errors
///
/// Returns what is wrong, as the end of a sentence that begins with the argument.
pub const fn check_name(name: &str) -> Result<(), &'static str> {
    let (mut rest, mut length, mut is_blank, mut has_control) = (name.as_bytes(), 0_usize, true, false);
    while let Some((character, after)) = text::first_char(rest) {
        is_blank &= character.is_whitespace();
        has_control |= text::is_control(character);
        length += 1;
        rest = after;
    }
    if is_blank {
        Err("must not be blank")
    } else if has_control {
        Err("must not hold control characters")
    } else if length > 255 {
        Err("must not be longer than 255 characters")
    } else {
        Ok(())
    }
}

/// Checks how long a record is kept, against [`SHORTEST_TTL`] and [`LONGEST`].
///
/// # Errors
///
/// Returns what is wrong, as the end of a sentence that begins with the argument.
pub const fn check_ttl(ttl: Duration) -> Result<(), &'static str> {
    check_duration(ttl, SHORTEST_TTL, "must be at least 1s")
}

/// Checks how long a claim is exclusive, against [`SHORTEST_LEASE`] and [`LONGEST`].
///
/// # Errors
///
/// Returns what is wrong, as the end of a sentence that begins with the argument.
pub const fn check_lease(lease: Duration) -> Result<(), &'static str> {
    check_duration(lease, SHORTEST_LEASE, "must be at least 100ms")
}

/// Checks how long a duplicate waits, against [`SHORTEST_WAIT`] and [`LONGEST`].
///
/// # Errors
///
/// Returns what is wrong, as the end of a sentence that begins with the argument.
pub const fn check_wait(limit: Duration) -> Result<(), &'static str> {
    check_duration(limit, SHORTEST_WAIT, "must be at least 1ms")
}

const fn check_duration(duration: Duration, shortest: Duration, too_short: &'static str) -> Result<(), &'static str> {
    if duration.as_nanos() > LONGEST.as_nanos() {
        Err("must be at most 100years")
    } else if duration.as_nanos() < shortest.as_nanos() {
        Err(too_short)
    } else {
        Ok(())
    }
}

/// Checks how many statuses or methods a list names.
///
/// # Errors
///
/// Returns what is wrong, as the end of a sentence that begins with the argument.
pub const fn check_count(named: usize) -> Result<(), &'static str> {
    if named == 0 { Err("must name at least one") } else { Ok(()) }
}

/// Checks the least number of characters of a key. `is_uuid` is true if the key format is `uuid`.
///
/// # Errors
///
/// Returns what is wrong, as the end of a sentence that begins with the argument.
pub fn check_min_key_length(length: usize, is_uuid: bool) -> Result<(), String> {
    if length == 0 {
        Err("must be at least 1".to_owned())
    } else if length > LONGEST_KEY {
        Err(format!("must be at most {LONGEST_KEY}, the length of the longest key"))
    } else if is_uuid && length > UUID_LENGTH {
        Err(format!(
            "must be at most {UUID_LENGTH} beside `key_format = \"uuid\"`, because a UUID has {UUID_LENGTH} characters"
        ))
    } else {
        Ok(())
    }
}

/// Returns the lease of a policy: the given lease, or the default, which is never longer than `ttl`.
///
/// # Errors
///
/// If the lease is longer than the ttl, returns what is wrong, as the end of a sentence that begins with the argument.
pub const fn lease(given: Option<Duration>, ttl: Duration) -> Result<Duration, &'static str> {
    match given {
        None if LEASE.as_nanos() > ttl.as_nanos() => Ok(ttl),
        None => Ok(LEASE),
        Some(lease) if lease.as_nanos() <= ttl.as_nanos() => Ok(lease),
        Some(_) => Err("must not be longer than `ttl`: a claim is forgotten after its `ttl`"),
    }
}

/// Checks that a response of this status can be recorded.
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn check_status(status: u16) -> Result<(), &'static str> {
    match status {
        200..=599 => Ok(()),
        100..=199 => Err("an interim status (1xx) is no response that could be recorded; a final one is 200 to 599"),
        _ => Err("a status is a number from 200 to 599; write `201`"),
    }
}

/// Checks the name of a method: a token (RFC 9110, section 9.1), in the case that requests use.
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn check_method(name: &str) -> Result<(), String> {
    if !is_token(name) {
        return Err(format!("{name:?} is no method: letters, digits and `-` without spaces; write `POST`"));
    }
    match KNOWN_METHODS.iter().find(|known| known.eq_ignore_ascii_case(name)) {
        Some(known) if *known != name => Err(format!("methods are compared by case; write `{known}`")),
        _ => Ok(()),
    }
}

fn is_token(name: &str) -> bool {
    let is_token_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token_char)
}

/// Returns a header's name in lower case. The name must be a token (RFC 9110, section 5.1).
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn header_name(name: &str) -> Result<String, String> {
    if is_token(name) {
        return Ok(name.to_ascii_lowercase());
    }
    Err(format!("{name:?} is no header name: letters, digits and `-` without spaces; write \"x-request-id\""))
}

/// Checks that a header, in lower case, can carry the key.
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn check_key_header(name: &str) -> Result<(), String> {
    let reason = if CREDENTIAL_HEADERS.contains(&name) {
        "identifies the client, so all requests of one client would have the same key"
    } else if HEADERS_OF_HTTP.contains(&name) {
        "has another meaning in HTTP, so requests for different things would have the same key"
    } else {
        return Ok(());
    };
    Err(format!("`{name}` {reason}; write \"{HEADER}\", or a header that has a new value for each operation"))
}

/// Checks that a header, in lower case, can be recorded and replayed.
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn check_kept_header(name: &str) -> Result<(), String> {
    if NEVER_RECORDED.contains(&name) {
        return Err(format!("`{name}` belongs to one connection or answer and cannot be replayed; remove it"));
    }
    Ok(())
}

/// Checks that a header, in lower case, can be left out of replays. The guard itself sets the mark of a replay.
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn check_dropped_header(name: &str) -> Result<(), String> {
    if name == "idempotent-replayed" {
        return Err(format!("`{name}` marks every replay, so it cannot be left out; remove it"));
    }
    Ok(())
}

/// Checks that no header is both recorded by `keep_headers` and left out by `drop_headers`.
///
/// # Errors
///
/// Returns what is wrong, as a sentence.
pub fn check_disjoint(keep: &[String], drop: &[String]) -> Result<(), String> {
    match keep.iter().find(|name| drop.contains(name)) {
        Some(both) => Err(format!("`{both}` is both in `keep_headers` and in `drop_headers`; remove one of them")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        CREDENTIAL_HEADERS, HEADER, HEADERS_OF_HTTP, LEASE, LONGEST, SHORTEST_LEASE, SHORTEST_TTL, SHORTEST_WAIT, TTL,
    };

    /// The compiler checks constants of a program, and cannot format text. So the messages contain the limits
    /// literally.
    #[test]
    fn messages_name_the_limits() {
        let below = |shortest: Duration| shortest.checked_sub(Duration::from_nanos(1)).expect("it is not zero");
        let least = |shortest| format!("must be at least {}", humantime::format_duration(shortest));
        let most = format!("must be at most {}", humantime::format_duration(LONGEST));
        let above = LONGEST + Duration::from_nanos(1);
        for (check, shortest) in [
            (super::check_ttl as fn(Duration) -> Result<(), &'static str>, SHORTEST_TTL),
            (super::check_lease, SHORTEST_LEASE),
            (super::check_wait, SHORTEST_WAIT),
        ] {
            assert_eq!(check(shortest), Ok(()));
            assert_eq!(check(LONGEST), Ok(()));
            assert_eq!(check(below(shortest)), Err(&*least(shortest)));
            assert_eq!(check(above), Err(&*most));
        }
    }

    #[test]
    fn the_default_lease_is_never_longer_than_the_ttl() {
        assert_eq!(super::lease(None, TTL), Ok(LEASE));
        assert_eq!(super::lease(None, SHORTEST_TTL), Ok(SHORTEST_TTL));
        assert_eq!(super::lease(Some(LEASE), LEASE), Ok(LEASE));
        assert!(super::lease(Some(LEASE), SHORTEST_TTL).is_err());
    }

    #[test]
    fn headers_with_another_meaning_carry_no_key() {
        for name in CREDENTIAL_HEADERS.iter().chain(HEADERS_OF_HTTP) {
            assert_eq!(super::header_name(name).as_deref(), Ok(*name), "a request's header is compared in lower case");
            assert!(super::check_key_header(name).is_err(), "{name}");
        }
        for name in [HEADER, "x-request-id", "x-idempotency-key"] {
            assert_eq!(super::check_key_header(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_are_counted_in_characters() {
        assert_eq!(super::check_name("payé"), Ok(()));
        assert_eq!(super::check_name(&"é".repeat(255)), Ok(()));
        assert_eq!(super::check_name(&"é".repeat(256)), Err("must not be longer than 255 characters"));
        assert_eq!(super::check_name(" \u{3000}\t"), Err("must not be blank"));
        assert_eq!(super::check_name("pay\u{85}"), Err("must not hold control characters"));
    }
}
