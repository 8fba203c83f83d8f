//! The client's key, and the record key that it becomes inside a scope and for a caller.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::header::GetAll;
use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};
use sfv::{BareItem, Item, Parser};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

/// A well-formed key: 1 to 255 characters of ASCII, not blank.
///
/// The header's value is a Structured Field String (RFC 9651, section 3.3.3), as in the `Idempotency-Key` draft, or the same
/// characters bare, as most clients send them. Both spellings are the same key.
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
    pub const MAX_LENGTH: usize = 255;

    /// A UUID in quotes takes no memory of its own.
    const USUAL_LENGTH: usize = 40;

    /// Reads a header's value.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] says what is wrong with the value.
    pub fn from_header(value: &HeaderValue) -> Result<Self, InvalidKey> {
        let text = value.as_bytes().trim_ascii();
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
    /// [`InvalidKey`] if it is empty, blank, over 255 characters, or contains anything but printable ASCII.
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
        Ok(Self(text.as_bytes().into()))
    }

    /// The decoded key.
    #[expect(clippy::missing_panics_doc, reason = "a key is ASCII")]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("a key is ASCII")
    }
}

/// As [`IdempotencyKey::new`].
///
/// ```
/// use idempotent_runtime::{IdempotencyKey, InvalidKey};
///
/// let key: IdempotencyKey = "8e03978e".parse()?;
/// assert_eq!(key.as_ref(), "8e03978e");
/// assert_eq!("".parse::<IdempotencyKey>(), Err(InvalidKey::Empty));
/// # Ok::<(), InvalidKey>(())
/// ```
/// The key in the lines of its header, if there is one.
pub(crate) fn key_in(lines: &GetAll<'_, HeaderValue>) -> Option<Result<IdempotencyKey, InvalidKey>> {
    let mut values = lines.iter();
    let first = values.next()?;
    match values.next() {
        None => Some(IdempotencyKey::from_header(first)),
        Some(_) => Some(Err(InvalidKey::SeveralHeaderLines)),
    }
}

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

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdempotencyKey").field(&self.as_str()).finish()
    }
}

/// Whether all of them are such bytes: without a branch for each, which lets the compiler take many of them at once.
fn every(text: &[u8], is_such: impl Fn(u8) -> bool) -> bool {
    text.iter().fold(true, |all, &byte| all & is_such(byte))
}

/// Whether a Structured Field gives the byte a meaning.
fn is_syntax(byte: u8) -> bool {
    matches!(byte, b'"' | b',' | b';' | b'\\')
}

/// What is wrong with a key.
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
        /// How many it has.
        length: usize,
    },
    /// The key contains characters other than visible ASCII. A quoted key may also contain spaces.
    #[error("the key may hold visible ASCII characters only")]
    NotVisibleAscii,
    /// The request has several lines of the header.
    #[error("the header occurs more than once in the request")]
    SeveralHeaderLines,
    /// The key begins with a quote and is not a Structured Field String, or is bare and contains a character of that syntax.
    #[error("the key is neither a quoted string of RFC 9651 nor free of the characters \" , ; \\")]
    BrokenQuoting,
}

/// The name of a record in its store: scope, caller and key, in one unambiguous text.
///
/// The text is `scope/@caller/key`, or `scope//key` without a caller. In each part, every character except unreserved visible
/// ASCII is percent-encoded, including the slash, so two different triples never have the same text. A clone is cheap.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::RecordKey;
///
/// let key = RecordKey::new("charges", Some("acct/7"), "8e03978e");
/// assert_eq!(key.as_str(), "charges/@acct%2F7/8e03978e");
/// assert_eq!(key.caller().as_deref(), Some("acct/7"));
/// assert_eq!(key.as_str().parse(), Ok(key));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey(Arc<str>);

const ESCAPED: &AsciiSet = &{
    let (mut escaped, mut byte) = (AsciiSet::EMPTY, 0);
    while byte < 0x80 {
        if !stands_for_itself(byte) {
            escaped = escaped.add(byte);
        }
        byte += 1;
    }
    escaped
};

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'%' | b'/')
}

impl RecordKey {
    /// The record key of these three parts. Each part can be any text.
    #[expect(clippy::missing_panics_doc, reason = "percent-encoded text is ASCII")]
    pub fn new(scope: &str, caller: Option<&str>, key: &str) -> Self {
        // All three parts are short as a rule, and then a text on the stack saves an allocation.
        let mut text = SmallVec::<[u8; 128]>::new();
        encode(scope, &mut text);
        text.push(b'/');
        if let Some(caller) = caller {
            text.push(b'@');
            encode(caller, &mut text);
        }
        text.push(b'/');
        encode(key, &mut text);
        Self(str::from_utf8(&text).expect("percent-encoded text is ASCII").into())
    }

    /// The key as a registry with [`digest_keys`](crate::RegistryBuilder::digest_keys) stores it: the plain scope, and
    /// SHA-256 digests of the caller in this scope and of the whole key.
    ///
    /// The name of a step stays plain, because it is a word of the program, like the scope.
    ///
    /// Operators use it to look up and purge records of such a registry. A caller that can be guessed, such as a number, can
    /// be found by digesting all candidates.
    ///
    /// ```
    /// use idempotent_runtime::RecordKey;
    ///
    /// let stored = RecordKey::new("charges", Some("alice"), "8e03978e").digested();
    /// assert_eq!(stored.scope(), "charges");
    /// assert_eq!(stored.key().len(), 64);
    /// assert_ne!(stored.caller(), RecordKey::new("refunds", Some("alice"), "8e03978e").digested().caller());
    /// ```
    #[must_use]
    pub fn digested(&self) -> Self {
        if let Some((handler, name)) = self.step_of() {
            return handler.digested().step(&name);
        }
        let [scope, caller, _] = self.parts();
        let caller = (!caller.is_empty()).then(|| hex_digest(&format!("{scope}/{caller}")));
        Self::new(&decode(scope), caller.as_deref(), &hex_digest(self.as_str()))
    }

    /// The key under which a step of this name is recorded, for a handler that runs under this key.
    ///
    /// Scope and caller are the same. The key is followed by a newline, which no client's key can contain, and the name. So a
    /// listing shows the steps beside the entry of their handler. Operators purge a step by this key.
    ///
    /// ```
    /// use idempotent_runtime::RecordKey;
    ///
    /// let step = RecordKey::new("charges", Some("alice"), "8e03978e").step("reserve-stock");
    /// assert_eq!(step.as_str(), "charges/@alice/8e03978e%0Areserve-stock");
    /// ```
    #[must_use]
    pub fn step(&self, name: &str) -> Self {
        let [scope, caller, key] = self.parts();
        Self::new(&decode(scope), caller.strip_prefix('@').map(decode).as_deref(), &format!("{}\n{name}", decode(key)))
    }

    /// The key of a handler of this scope to which an extractor of another handler sends its request: both may have one key, and
    /// each has a record. A client's key has no tab.
    pub(crate) fn in_extractor(&self) -> Self {
        let [scope, caller, key] = self.parts();
        Self::new(
            &decode(scope),
            caller.strip_prefix('@').map(decode).as_deref(),
            &format!("{}\textractor", decode(key)),
        )
    }

    /// The handler's key and the name of the step, if this is a step's key.
    ///
    /// ```
    /// use idempotent_runtime::RecordKey;
    ///
    /// let handler = RecordKey::new("charges", Some("alice"), "8e03978e");
    /// assert_eq!(handler.step_of(), None);
    /// assert_eq!(handler.step("reserve-stock").step_of(), Some((handler, "reserve-stock".to_owned())));
    /// ```
    pub fn step_of(&self) -> Option<(Self, String)> {
        let (_, name) = self.parts()[2].split_once("%0A")?;
        let handler = &self.0[..self.0.len() - name.len() - "%0A".len()];
        Some((Self(handler.into()), decode(name).into_owned()))
    }

    /// The text that stores use as their key: ASCII without spaces and control characters, with `/` between the parts.
    ///
    /// Its length depends on the caller, which can be any text. A store whose keys must be short, such as file names, keeps
    /// this text beside the entry and finds it by its digest: the [`key`](Self::key) of [`digested`](Self::digested), 64
    /// hexadecimal digits of the whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The scope.
    pub fn scope(&self) -> Cow<'_, str> {
        decode(self.parts()[0])
    }

    /// The caller, if the handler names one.
    pub fn caller(&self) -> Option<Cow<'_, str>> {
        self.parts()[1].strip_prefix('@').map(decode)
    }

    /// The client's key.
    pub fn key(&self) -> Cow<'_, str> {
        decode(self.parts()[2])
    }

    fn parts(&self) -> [&str; 3] {
        let mut parts = self.0.splitn(3, '/');
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    }
}

fn encode(part: &str, text: &mut SmallVec<[u8; 128]>) {
    if every(part.as_bytes(), stands_for_itself) {
        return text.extend_from_slice(part.as_bytes());
    }
    utf8_percent_encode(part, ESCAPED).for_each(|chunk| text.extend_from_slice(chunk.as_bytes()));
}

fn decode(part: &str) -> Cow<'_, str> {
    percent_decode_str(part).decode_utf8_lossy()
}

fn hex_digest(text: &str) -> String {
    format!("{:x}", Bytes::from_owner(Sha256::digest(text)))
}

/// Reads a text of [`RecordKey::as_str`], for instance when a store lists its entries.
impl FromStr for RecordKey {
    type Err = MalformedRecordKey;

    fn from_str(text: &str) -> Result<Self, MalformedRecordKey> {
        let parsed = Self(text.into());
        let well_formed = text.split('/').count() == 3 && {
            let [scope, caller, key] = parsed.parts();
            (caller.is_empty() || caller.starts_with('@'))
                && Self::new(&decode(scope), caller.strip_prefix('@').map(decode).as_deref(), &decode(key)) == parsed
        };
        well_formed.then_some(parsed).ok_or(MalformedRecordKey)
    }
}

/// Shows the scope alone: keys and callers do not belong in logs.
impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordKey").field("scope", &self.scope()).finish_non_exhaustive()
    }
}

/// The text is not a record key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("a record key reads `scope/@caller/key` or `scope//key`, percent-encoded")]
pub struct MalformedRecordKey;
