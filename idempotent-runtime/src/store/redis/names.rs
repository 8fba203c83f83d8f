//! The name of a record key in Redis: the store's prefix, and the key's text.
//!
//! A prefix ends with a colon, and a scope in a name has no colon. So a name belongs to one prefix only, even if the
//! prefix of another store begins with this one. A key in a name has no braces. A Redis Cluster chooses the slot by the
//! text between braces, so with them a client could put all of its keys on one server. Braces in a prefix are the
//! application's choice.

use std::borrow::Cow;

use crate::key::RecordKey;

/// The characters that are encoded in a scope.
const OF_SCOPE: &[(char, &str)] = &[(':', "%3A"), ('{', "%7B"), ('}', "%7D")];

/// The characters that are encoded in caller and key.
const BRACES: &[(char, &str)] = &[('{', "%7B"), ('}', "%7D")];

/// Returns the prefix as it is used in names. An empty prefix stays empty.
pub(super) fn prefix(mut given: String) -> String {
    if !given.is_empty() && !given.ends_with(':') {
        given.push(':');
    }
    given
}

pub(super) fn of(prefix: &str, key: &RecordKey) -> Vec<u8> {
    let (scope, rest) = split(key.as_str());
    if !scope.contains(':') && !key.as_str().bytes().any(|byte| matches!(byte, b'{' | b'}')) {
        return [prefix, key.as_str()].concat().into_bytes();
    }
    // A percent sign of the key is encoded too, so this text belongs to no other key.
    [prefix, &*encoded(scope, OF_SCOPE), &*encoded(rest, BRACES)].concat().into_bytes()
}

/// Parses the key in a name. Returns `None` if the name does not have this prefix, or contains no key.
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

/// Decodes a text. Returns `None` if it contains a character that must be encoded.
fn decoded(text: &str, codes: &[(char, &str)]) -> Option<String> {
    let is_encoded = codes.iter().all(|&(sign, _)| !text.contains(sign));
    is_encoded.then(|| codes.iter().fold(text.to_owned(), |text, &(sign, code)| text.replace(code, &sign.to_string())))
}

/// Splits the text into the scope and the rest.
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
