//! The record key: a client's key, together with its scope and caller.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::hexadecimal::hexadecimal;

/// The name of a record in its store: scope, caller and key, in one unambiguous text.
///
/// The text is `scope/@caller/key`, or `scope//key` without a caller. In each part, every character except unreserved
/// visible ASCII is percent-encoded, including the slash, so two different triples never have the same text. A clone is
/// cheap.
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
    /// Creates the record key of these three parts. Each part can be any text.
    #[expect(clippy::missing_panics_doc, reason = "percent-encoded text is ASCII")]
    pub fn new(scope: &str, caller: Option<&str>, key: &str) -> Self {
        // All three parts are usually short, so a buffer on the stack saves an allocation.
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

    /// Returns the key as a registry with [`digest_keys`](crate::RegistryBuilder::digest_keys) and without
    /// [`digest_with`](crate::RegistryBuilder::digest_with) stores it: the plain scope, and SHA-256 digests of the
    /// caller in this scope and of the whole key. `SealingKey::digested` is the same with a secret.
    ///
    /// The name of a step stays plain, because it is a word of the program, like the scope.
    ///
    /// Operators use the digested key to look up and purge records of such a registry. A caller that can be guessed,
    /// such as a number, can be found by digesting all candidates.
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
        self.digested_by(&|text| Sha256::digest(text).into())
    }

    /// Returns the key with this digest of the caller in its scope, and of the whole key.
    pub(crate) fn digested_by(&self, digest: &dyn Fn(&str) -> [u8; 32]) -> Self {
        if let Some((handler, name)) = self.step_of() {
            return handler.digested_by(digest).step(&name);
        }
        let hex = |text: &str| hexadecimal(&digest(text));
        let [scope, caller, _] = self.parts();
        let caller = (!caller.is_empty()).then(|| hex(&format!("{scope}/{caller}")));
        Self::new(&decode(scope), caller.as_deref(), &hex(self.as_str()))
    }

    /// Returns the key under which a step of this name is recorded, for a handler that runs under this key.
    ///
    /// The step has the same scope and caller. The handler's key is followed by a newline, which no client's key can
    /// contain, and the name. So a listing shows the steps beside the entry of their handler. Operators resolve and
    /// purge a step by this key.
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

    /// Returns the key for a handler of the same scope to which an extractor of another handler sends its request. Both
    /// handlers may have the same key, and each has its own record. A client's key contains no tab.
    pub(crate) fn in_extractor(&self) -> Self {
        let [scope, caller, key] = self.parts();
        Self::new(
            &decode(scope),
            caller.strip_prefix('@').map(decode).as_deref(),
            &format!("{}\textractor", decode(key)),
        )
    }

    /// Returns the handler's key and the name of the step, if this is a step's key.
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

    /// Returns the text that stores use as their key: ASCII without spaces and control characters, with `/` between the
    /// parts.
    ///
    /// Its length depends on the caller, which can be any text. A store whose keys must be short, such as file names,
    /// keeps this text beside the entry and finds the entry by the digest of the text: the [`key`](Self::key) of
    /// [`digested`](Self::digested), 64 hexadecimal digits of the whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the scope.
    pub fn scope(&self) -> Cow<'_, str> {
        decode(self.parts()[0])
    }

    /// Returns the caller, if the key has one.
    pub fn caller(&self) -> Option<Cow<'_, str>> {
        self.parts()[1].strip_prefix('@').map(decode)
    }

    /// Returns the client's key.
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

/// Returns whether `is_such` holds for all bytes. The loop has no branch for each byte, so the compiler can process
/// many bytes at once.
pub(crate) fn every(text: &[u8], is_such: impl Fn(u8) -> bool) -> bool {
    text.iter().fold(true, |all, &byte| all & is_such(byte))
}

fn decode(part: &str) -> Cow<'_, str> {
    percent_decode_str(part).decode_utf8_lossy()
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

/// Shows only the scope, because keys and callers do not belong in logs.
impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordKey").field("scope", &self.scope()).finish_non_exhaustive()
    }
}

/// The error of a text that is not a record key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("a record key reads `scope/@caller/key` or `scope//key`, percent-encoded")]
pub struct MalformedRecordKey;
