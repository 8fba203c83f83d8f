//! The name of a record key in Redis: the store's prefix, and the key's text.
//!
//! A prefix ends with a colon, and a scope in a name has none. So a name belongs to one prefix only, even if the prefix of
//! another store is the beginning of this one.

use std::borrow::Cow;

use crate::key::RecordKey;

const COLON: &str = "%3A";

/// The prefix as names have it; an empty one stays empty.
pub(super) fn prefix(mut given: String) -> String {
    if !given.is_empty() && !given.ends_with(':') {
        given.push(':');
    }
    given
}

pub(super) fn of(prefix: &str, key: &RecordKey) -> Vec<u8> {
    let (scope, rest) = split(key.as_str());
    // A percent sign of the scope is encoded too, so that this text is no other scope's.
    let scope = if scope.contains(':') { Cow::Owned(scope.replace(':', COLON)) } else { Cow::Borrowed(scope) };
    [prefix, &*scope, rest].concat().into_bytes()
}

/// `None` for what is no name of this prefix.
pub(super) fn key_in(prefix: &str, name: &[u8]) -> Option<RecordKey> {
    let text = str::from_utf8(name.strip_prefix(prefix.as_bytes())?).ok()?;
    let (scope, rest) = split(text);
    if scope.contains(':') {
        return None;
    }
    let is_plain = !scope.contains(COLON);
    if is_plain { text.parse().ok() } else { format!("{}{rest}", scope.replace(COLON, ":")).parse().ok() }
}

/// The scope, and what follows it.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_belongs_to_one_key_of_one_prefix() {
        let prefixes = ["shop", "shop:", "shop-eu", "shop:eu:", "", "a{b"].map(|given| prefix(given.to_owned()));
        let keys = ["charges", "eu:charges", "-eu:charges", "a%3Ab", "a:b", ":", ""]
            .map(|scope| RecordKey::new(scope, Some("a:b"), "k:%3A"));
        for prefix in &prefixes {
            for key in &keys {
                let name = of(prefix, key);
                for other in &prefixes {
                    let expected = (other == prefix).then(|| key.clone());
                    assert_eq!(key_in(other, &name), expected, "{other} {}", String::from_utf8_lossy(&name));
                }
            }
        }
    }
}
