//! The client's key.

use std::fmt;
use std::str::FromStr;

use http::HeaderValue;
use http::header::GetAll;
use sfv::{BareItem, Item, Parser};
use smallvec::SmallVec;

use crate::key::every;
use crate::policy::values::KeyFormat;

/// A well-formed key: 1 to 255 ASCII characters, not all of them spaces.
///
/// The header's value is a Structured Field String (RFC 9651, section 3.3.3), as in the `Idempotency-Key` draft, or the
/// same characters without quotes, as most clients send them. Both forms are the same key.
///
/// # Examples
///
/// ```
/// use http::HeaderValue;
/// use idempotent_runtime::IdempotencyKey;
///
/// let quoted = IdempotencyKey::from_header(&HeaderValue::from_static("\"8e03978e\""))?;
/// let bare = IdempotencyKey::from_header(&HeaderValue::from_static("8e03978e"))?;
/// assert_eq!(quoted, bare);
/// # Ok::<(), idempotent_runtime::InvalidKey>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(SmallVec<[u8; Self::USUAL_LENGTH]>);

impl IdempotencyKey {
    /// The longest key, in characters.
    pub const MAX_LENGTH: usize = idempotent_policy::LONGEST_KEY;

    /// The capacity without an allocation; a UUID in quotes fits.
    const USUAL_LENGTH: usize = 40;

    /// Reads a header's value.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] says what is wrong with the value.
    pub fn from_header(value: &HeaderValue) -> Result<Self, InvalidKey> {
        let text = value.as_bytes().trim_ascii();
        if MISTAKES.contains(&text) {
            return Err(InvalidKey::Mistake);
        }
        if matches!(text.len(), 1..=Self::MAX_LENGTH)
            && every(text, |byte| matches!(byte, b'!'..=b'~') && !is_syntax(byte))
        {
            return Ok(Self(text.into()));
        }
        if text.starts_with(b"\"") {
            return match Parser::new(text).parse::<Item>() {
                Ok(item) => match item.bare_item {
                    BareItem::String(string) => Self::new(string.as_str()),
                    _ => Err(InvalidKey::BrokenQuoting),
                },
                Err(_) => Err(InvalidKey::BrokenQuoting),
            };
        }
        let text = str::from_utf8(text).map_err(|_| InvalidKey::NotVisibleAscii)?;
        if text.bytes().any(is_syntax) {
            return Err(InvalidKey::BrokenQuoting);
        }
        if text.contains(' ') {
            return Err(InvalidKey::NotVisibleAscii);
        }
        Self::new(text)
    }

    /// Reads a key that does not come from a header, such as that of `key = expr`.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if the key is empty, blank, longer than 255 characters, or contains anything but printable ASCII;
    /// or if it is a value that clients send by mistake instead of a key: `undefined`, `null`, `NaN` or
    /// `[object Object]`.
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        if text.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(InvalidKey::NotVisibleAscii);
        }
        if text.trim_ascii().is_empty() {
            return Err(InvalidKey::Blank);
        }
        if text.len() > Self::MAX_LENGTH {
            return Err(InvalidKey::TooLong { length: text.len() });
        }
        if MISTAKES.contains(&text.as_bytes()) {
            return Err(InvalidKey::Mistake);
        }
        Ok(Self(text.as_bytes().into()))
    }

    /// Checks the requirements of a policy.
    pub(crate) fn check(&self, min_length: usize, format: KeyFormat) -> Result<(), InvalidKey> {
        let length = self.0.len();
        match format {
            KeyFormat::Uuid if *self.0 == *NIL => Err(InvalidKey::Mistake),
            KeyFormat::Uuid if !is_uuid(&self.0) => Err(InvalidKey::NotUuid),
            _ if length < min_length => Err(InvalidKey::TooShort { length, min: min_length }),
            _ => Ok(()),
        }
    }

    /// Returns the decoded key.
    #[expect(clippy::missing_panics_doc, reason = "a key is ASCII")]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("a key is ASCII")
    }
}

/// Reads a key like [`IdempotencyKey::new`].
///
/// ```
/// use idempotent_runtime::{IdempotencyKey, InvalidKey};
///
/// let key: IdempotencyKey = "8e03978e".parse()?;
/// assert_eq!(key.as_ref(), "8e03978e");
/// assert_eq!("".parse::<IdempotencyKey>(), Err(InvalidKey::Empty));
/// # Ok::<(), InvalidKey>(())
/// ```
impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::new(text)
    }
}

impl AsRef<str> for IdempotencyKey {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Does not show the key, because keys do not belong in logs.
impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(..)")
    }
}

/// Returns the key from the lines of its header, if the header exists.
pub(crate) fn key_in(lines: &GetAll<'_, HeaderValue>) -> Option<Result<IdempotencyKey, InvalidKey>> {
    let mut values = lines.iter();
    let first = values.next()?;
    match values.next() {
        None => Some(IdempotencyKey::from_header(first)),
        Some(_) => Some(Err(InvalidKey::SeveralHeaderLines)),
    }
}

/// Values that a client's bug puts into every request, such as `undefined`.
const MISTAKES: [&[u8]; 4] = [b"undefined", b"null", b"NaN", b"[object Object]"];

/// The nil UUID, which clients send if a variable was never set, such as .NET's `Guid.Empty`.
const NIL: &[u8] = b"00000000-0000-0000-0000-000000000000";

/// Returns whether the key is a UUID with hyphens, in upper or lower case.
fn is_uuid(key: &[u8]) -> bool {
    let is_in_place = |(at, byte): (usize, &u8)| match at {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    key.len() == idempotent_policy::UUID_LENGTH && key.iter().enumerate().all(is_in_place)
}

/// Returns whether the byte has a meaning in the syntax of Structured Fields.
fn is_syntax(byte: u8) -> bool {
    matches!(byte, b'"' | b',' | b';' | b'\\')
}

/// The mistake in a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The key has no characters.
    #[error("the key is empty")]
    Empty,
    /// The key has only spaces.
    #[error("the key is blank")]
    Blank,
    /// The key has more than [`IdempotencyKey::MAX_LENGTH`] characters.
    #[error("the key has {length} characters, at most {max} are allowed", max = IdempotencyKey::MAX_LENGTH)]
    #[non_exhaustive]
    TooLong {
        /// The number of characters of the key.
        length: usize,
    },
    /// The key contains characters other than visible ASCII. A quoted key may also contain spaces.
    #[error("the key may hold visible ASCII characters only")]
    NotVisibleAscii,
    /// The request has several lines of the header.
    #[error("the header occurs more than once in the request")]
    SeveralHeaderLines,
    /// The key begins with a quote and is not a Structured Field String, or is bare and contains a character of that syntax.
    #[error("the key contains one of the characters \" , ; \\ and is not a quoted string of RFC 9651")]
    BrokenQuoting,
    /// The key is `undefined`, `null`, `NaN` or `[object Object]`. The client has a bug and sends this value with every
    /// request.
    #[error("the key is a text that programs make from a missing value, so all requests of such a program have it")]
    Mistake,
    /// The key has fewer characters than `min_key_length` requires.
    #[error("the key has {length} characters, at least {min} are required")]
    #[non_exhaustive]
    TooShort {
        /// The number of characters of the key.
        length: usize,
        /// The least number of characters that the policy requires.
        min: usize,
    },
    /// The key is not a UUID, as `key_format = "uuid"` requires.
    #[error("the key is not a UUID")]
    NotUuid,
}
