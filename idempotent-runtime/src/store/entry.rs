//! The view that operators have of a store: entries, pages of entries, and counts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::store::claim::Token;

/// The number of unknown outcomes in each scope.
pub type UnknownOutcomes = BTreeMap<String, u64>;

/// The number of unknown outcomes at which a store stops counting, in all scopes together.
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
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The state: a claim or a record.
    pub state: EntryState,
    /// The time for which the entry is still kept. `None` if it never expires, like the claim of a handler with
    /// [`AfterCrash::Reject`](crate::AfterCrash::Reject).
    pub expires_in: Option<Duration>,
}

impl Entry {
    /// Creates an entry of these parts.
    pub const fn new(
        key: RecordKey,
        fingerprint: Fingerprint,
        state: EntryState,
        expires_in: Option<Duration>,
    ) -> Self {
        Self { key, fingerprint, state, expires_in }
    }

    /// Returns whether the entry is a claim whose lease has expired and which cannot be taken over. It is unknown
    /// whether its handler has done its work.
    pub fn is_unknown_outcome(&self) -> bool {
        self.expires_in.is_none() && matches!(self.state, EntryState::Claimed { lease: None, .. })
    }
}

/// The state of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryState {
    /// The key is claimed. The handler runs, or it ended or died without a record.
    Claimed {
        /// The number of the attempt.
        attempt: u32,
        /// The rest of the lease, or `None` if it has expired.
        lease: Option<Duration>,
        /// The token of the claim, which contains the time of the claim ([`Token::created_at`]).
        token: Token,
    },
    /// The key has a record.
    Completed {
        /// The status of the response.
        status: StatusCode,
        /// The length of the recorded body in bytes, or `None` if it was not recorded.
        body_bytes: Option<u64>,
        /// The time at which the response was recorded.
        recorded_at: SystemTime,
    },
}

/// A place in a listing, in the store's own format.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor(pub(crate) String);

/// Shows nothing of the text, which may be a key.
impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cursor(..)")
    }
}

impl Cursor {
    /// Creates the place that the store describes by this text.
    ///
    /// ```
    /// use idempotent_runtime::store::Cursor;
    ///
    /// assert_eq!(Cursor::new("charges//8e03978e").as_str(), "charges//8e03978e");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text that the store made.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An entry that cannot be read. Requests with its key are rejected until it is purged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedEntry {
    /// The key, or `None` if the key itself cannot be read.
    pub key: Option<RecordKey>,
    /// The damage, in words that can be logged: they contain no key and nothing of a response.
    pub reason: String,
}

impl DamagedEntry {
    /// Creates a damaged entry whose key cannot be read either.
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

    /// Returns the same entry with a key that can be read.
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
    /// The damaged entries on this page. They are listed apart, so that a damaged entry does not hide the others.
    pub damaged: Vec<DamagedEntry>,
    /// The place at which the next page begins, or `None` after the last page.
    pub next: Option<Cursor>,
}

impl Page {
    /// Creates a page without damaged entries. [`Page::default`] is an empty page.
    pub const fn new(entries: Vec<Entry>, next: Option<Cursor>) -> Self {
        Self { entries, damaged: Vec::new(), next }
    }
}
