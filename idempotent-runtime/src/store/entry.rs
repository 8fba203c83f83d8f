//! What operators see of a store: entries, pages of them, and counts.

use std::collections::BTreeMap;
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Whether it is a claim that cannot be taken over and whose lease has expired. It is unknown whether its handler has
    /// done its work.
    pub fn is_unknown_outcome(&self) -> bool {
        self.expires_in.is_none() && matches!(self.state, EntryState::Claimed { lease: None, .. })
    }
}

/// The state of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub String);

/// An entry that cannot be read. Requests with its key are rejected until it is purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedEntry {
    /// The key; `None` if the key itself cannot be read.
    pub key: Option<RecordKey>,
    /// What is wrong, in words that can be logged: no key, and nothing of a response.
    pub reason: String,
}

/// A part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Damaged entries on this page: a damaged entry must not hide the others.
    pub damaged: Vec<DamagedEntry>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Cursor>,
}
