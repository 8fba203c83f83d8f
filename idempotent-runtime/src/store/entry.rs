//! What operators see of a store: entries, pages of them, and counts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::store::claim::Token;

/// How many unknown outcomes there are in each scope.
pub type UnknownOutcomes = BTreeMap<String, u64>;

/// How many unknown outcomes a store counts at most, in all scopes together.
pub const UNKNOWN_OUTCOMES_COUNTED: usize = 10_000;

/// The claim or record of a key, without the body.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use http::StatusCode;
/// use idempotent_runtime::store::{Entry, EntryState};
/// use idempotent_runtime::{Fingerprint, RecordKey};
///
/// let recorded_at = SystemTime::UNIX_EPOCH;
/// let state = EntryState::Completed { status: StatusCode::CREATED, body_bytes: Some(4), recorded_at };
/// let key = RecordKey::new("charges", None, "8e03978e");
/// let entry = Entry::new(key, Fingerprint::from_bytes([7; 32]), state, Some(Duration::from_secs(60)));
/// assert!(!entry.is_unknown_outcome());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The key.
    pub key: RecordKey,
    /// What the request asked for.
    pub fingerprint: Fingerprint,
    /// Claim or record.
    pub state: EntryState,
    /// How long it is still kept; `None` when it never expires, as the claim of a handler with [`AfterCrash::Reject`](crate::AfterCrash::Reject).
    pub expires_in: Option<Duration>,
}

impl Entry {
    /// An entry of these parts.
    pub const fn new(
        key: RecordKey,
        fingerprint: Fingerprint,
        state: EntryState,
        expires_in: Option<Duration>,
    ) -> Self {
        Self { key, fingerprint, state, expires_in }
    }

    /// Whether it is a claim that cannot be taken over and whose lease has expired. It is unknown whether its handler has
    /// done its work.
    pub fn is_unknown_outcome(&self) -> bool {
        self.expires_in.is_none() && matches!(self.state, EntryState::Claimed { lease: None, .. })
    }
}

/// The state of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryState {
    /// A handler runs, or ran in a process that died.
    Claimed {
        /// How many times the key was claimed.
        attempt: u32,
        /// The rest of the lease; `None` if it has expired.
        lease: Option<Duration>,
        /// The token of the claim, which contains the time of the claim ([`Token::created_at`]).
        token: Token,
    },
    /// A handler has answered.
    Completed {
        /// The status of the response.
        status: StatusCode,
        /// The length of the recorded body in bytes; `None` if it was not recorded.
        body_bytes: Option<u64>,
        /// When it was recorded.
        recorded_at: SystemTime,
    },
}

/// A place in a listing, in the store's own words.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor(pub(crate) String);

/// Shows nothing of the text, which may be a key.
impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cursor(..)")
    }
}

impl Cursor {
    /// The place that the store describes by this text.
    ///
    /// ```
    /// use idempotent_runtime::store::Cursor;
    ///
    /// assert_eq!(Cursor::new("charges//8e03978e").as_str(), "charges//8e03978e");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text that the store made.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An entry that cannot be read. Requests with its key are rejected until it is purged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedEntry {
    /// The key; `None` if the key itself cannot be read.
    pub key: Option<RecordKey>,
    /// What is wrong, in words that can be logged: no key, and nothing of a response.
    pub reason: String,
}

impl DamagedEntry {
    /// A damaged entry whose key cannot be read either.
    ///
    /// ```
    /// use idempotent_runtime::RecordKey;
    /// use idempotent_runtime::store::DamagedEntry;
    ///
    /// assert_eq!(DamagedEntry::new("the row has no fingerprint").key, None);
    /// let key = RecordKey::new("charges", None, "8e03978e");
    /// assert_eq!(DamagedEntry::new("the row has no fingerprint").with_key(key.clone()).key, Some(key));
    /// ```
    pub fn new(reason: impl Into<String>) -> Self {
        Self { key: None, reason: reason.into() }
    }

    /// The same entry, whose key can be read.
    #[must_use]
    pub fn with_key(self, key: RecordKey) -> Self {
        Self { key: Some(key), ..self }
    }
}

/// A part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Damaged entries on this page: a damaged entry must not hide the others.
    pub damaged: Vec<DamagedEntry>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Cursor>,
}

impl Page {
    /// A page without damaged entries. An empty one is [`Page::default`].
    pub const fn new(entries: Vec<Entry>, next: Option<Cursor>) -> Self {
        Self { entries, damaged: Vec::new(), next }
    }
}
