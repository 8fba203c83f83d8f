//! The name of a record key in Redis: the store's prefix, and the key's text.
//!
//! A prefix ends with a colon, and a scope in a name has none. So a name belongs to one prefix only, even if the prefix of
//! another store is the beginning of this one. A key in a name has no braces, because a Redis Cluster chooses the slot by what is
//! between braces: a client could put all of its keys on one server. Those of a prefix are the application's choice.

use std::borrow::Cow;

use crate::key::RecordKey;

/// What is encoded in a scope.
const OF_SCOPE: &[(char, &str)] = &[(':', "%3A"), ('{', "%7B"), ('}', "%7D")];

/// What is encoded in caller and key.
const BRACES: &[(char, &str)] = &[('{', "%7B"), ('}', "%7D")];

/// The prefix as names have it; an empty one stays empty.
pub(super) fn prefix(mut given: String) -> String {
    if !given.is_empty() && !given.ends_with(':') {
        given.push(':');
    }
    given
}

pub(super) fn of(prefix: &str, key: &RecordKey) -> Vec<u8> {
    let (scope, rest) = split(key.as_str());
    // A percent sign of the key is encoded too, so that this text is no other key's.
    [prefix, &*encoded(scope, OF_SCOPE), &*encoded(rest, BRACES)].concat().into_bytes()
}

/// `None` for what is no name of this prefix.
pub(super) fn key_in(prefix: &str, name: &[u8]) -> Option<RecordKey> {
    let text = str::from_utf8(name.strip_prefix(prefix.as_bytes())?).ok()?;
    let (scope, rest) = split(text);
    format!("{}{}", decoded(scope, OF_SCOPE)?, decoded(rest, BRACES)?).parse().ok()
}

fn encoded<'a>(text: &'a str, codes: &[(char, &str)]) -> Cow<'a, str> {
    codes.iter().fold(Cow::Borrowed(text), |text, &(sign, code)| {
        if text.contains(sign) { Cow::Owned(text.replace(sign, code)) } else { text }
    })
}

/// `None` for what has a sign that is not encoded.
fn decoded(text: &str, codes: &[(char, &str)]) -> Option<String> {
    let is_encoded = codes.iter().all(|&(sign, _)| !text.contains(sign));
    is_encoded.then(|| codes.iter().fold(text.to_owned(), |text, &(sign, code)| text.replace(code, &sign.to_string())))
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
        let prefixes = ["shop", "shop:", "shop-eu", "shop:eu:", "", "a{b", "{a}"].map(|given| prefix(given.to_owned()));
        let keys = ["charges", "eu:charges", "-eu:charges", "a%3Ab", "a:b", "{a}", "%7Ba%7D", ":", ""]
            .map(|scope| RecordKey::new(scope, Some("a:b{c}"), "k:%3A{%7B}}"));
        for prefix in &prefixes {
            for key in &keys {
                let name = of(prefix, key);
                for other in &prefixes {
                    let expected = (other == prefix).then(|| key.clone());
                    assert_eq!(key_in(other, &name), expected, "{other} {}", String::from_utf8_lossy(&name));
                }
                assert!(!name[prefix.len()..].iter().any(|byte| b"{}".contains(byte)));
            }
        }
    }
    #[test]
    fn name_with_a_brace_or_a_colon_in_its_scope_is_no_key() {
        for name in ["charges//{x}", "charges/@{x}/k", "{x}//k", "a:b//k", "charges//%7b", "charges//k%7"] {
            assert_eq!(key_in("", name.as_bytes()), None, "{name}");
        }
        assert_eq!(key_in("", b"charges//a:%7Bx%7D"), Some(RecordKey::new("charges", None, "a:{x}")));
    }
}
