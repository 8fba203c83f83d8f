//! One entry of a store, as operators see it.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::key::RecordKey;
use crate::operate::masking::{Keys, masked};
use crate::policy::values::AfterCrash;
use crate::store::entry::{DamagedEntry, Entry, EntryState};

/// The state of an entry, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// A handler with `after_crash = "reject"` crashed or panicked. A person must find out whether it did its work.
    OutcomeUnknown,
    /// The entry cannot be read. Requests with this key are rejected until the entry is purged.
    Damaged,
    /// The handler's process died or is stopped. The next request with this key can run the handler again.
    PastLease,
    /// The handler runs.
    InFlight,
    /// A response is recorded.
    Completed,
    /// The handler ran, but its response could not be recorded. A retry is rejected: see
    /// [`Rejection::ResponseNotRecorded`](crate::Rejection::ResponseNotRecorded).
    ResponseNotRecorded,
}

impl State {
    /// All states, the most urgent first.
    pub const ALL: [Self; 6] = [
        Self::OutcomeUnknown,
        Self::Damaged,
        Self::PastLease,
        Self::InFlight,
        Self::Completed,
        Self::ResponseNotRecorded,
    ];

    /// Returns the name in JSON and in addresses, such as `in_flight`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Damaged => "damaged",
            Self::PastLease => "past_lease",
            Self::InFlight => "in_flight",
            Self::Completed => "completed",
            Self::ResponseNotRecorded => "response_not_recorded",
        }
    }

    /// Returns what an operator must know before a purge.
    pub const fn consequence(self) -> &'static str {
        match self {
            Self::InFlight => {
                "the handler may still be running: after a purge, a retry that reaches another process runs it a second time beside the first; in its own process the key stays claimed until it ends"
            }
            Self::OutcomeUnknown => {
                "the handler may have done its work: after a purge, a retry runs it again, so find out first whether it did"
            }
            Self::PastLease => {
                "the handler may have done its work, or be only slow: after a purge, a retry runs it as if for the first time"
            }
            Self::Completed | Self::ResponseNotRecorded => {
                "the handler has done its work: after a purge, a retry runs it again"
            }
            Self::Damaged => {
                "it may have been the record of work that was done: after a purge, a retry runs the handler"
            }
        }
    }

    /// Returns whether an operator should investigate entries of this state.
    pub const fn is_stuck(self) -> bool {
        matches!(self, Self::OutcomeUnknown | Self::Damaged | Self::PastLease)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The error of a text that names no state. The message lists all states.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no state `{0}`: write one of {names}", names = State::ALL.map(State::as_str).join(", "))]
pub struct UnknownState(String);

impl std::str::FromStr for State {
    type Err = UnknownState;

    fn from_str(name: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| UnknownState(name.to_owned()))
    }
}

/// An entry of a store, as it was at one moment.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::operate::{EntryView, Keys, State};
/// use idempotent_runtime::store::{Entry, EntryState, Token};
/// use idempotent_runtime::{Fingerprint, RecordKey};
///
/// // A claim whose lease has expired, and which never expires itself.
/// let claimed = EntryState::Claimed { attempt: 1, lease: None, token: Token::unique() };
/// let key = RecordKey::new("payouts", None, "8e03978e-40d5-43dd");
/// let view = EntryView::new(Entry::new(key, Fingerprint::from_bytes([7; 32]), claimed, None), None);
///
/// assert_eq!(view.state(), State::OutcomeUnknown);
/// assert_eq!(view.report(Keys::Masked).key_hint.as_deref(), Some("8e03… (18)"));
/// ```
#[derive(Clone, Debug)]
pub struct EntryView {
    key: Option<RecordKey>,
    state: State,
    found: Result<Entry, String>,
}

impl EntryView {
    /// Creates a view of this entry. The entry itself says whether its claim never expires: such a claim cannot be
    /// taken over. A claim that was made before the handler's policy was changed to `after_crash = "reject"` does not
    /// say so: pass the `after_crash` of the current policy, if it is known.
    pub fn new(entry: Entry, after_crash: Option<AfterCrash>) -> Self {
        let state = match entry.state {
            EntryState::Claimed { lease: Some(_), .. } => State::InFlight,
            EntryState::Claimed { lease: None, .. }
                if entry.is_unknown_outcome() || after_crash.is_some_and(|after_crash| !after_crash.may_rerun()) =>
            {
                State::OutcomeUnknown
            }
            EntryState::Claimed { lease: None, .. } => State::PastLease,
            EntryState::Completed { body_bytes: Some(_), .. } => State::Completed,
            EntryState::Completed { body_bytes: None, .. } => State::ResponseNotRecorded,
        };
        Self { key: Some(entry.key.clone()), state, found: Ok(entry) }
    }

    /// Creates a view of an entry that cannot be read.
    pub fn from_damaged(damaged: DamagedEntry) -> Self {
        Self { key: damaged.key, state: State::Damaged, found: Err(damaged.reason) }
    }

    /// Returns the key. Returns `None` if the key itself cannot be read.
    pub fn key(&self) -> Option<&RecordKey> {
        self.key.as_ref()
    }

    /// Returns the entry. Returns `None` if it cannot be read.
    pub fn entry(&self) -> Option<&Entry> {
        self.found.as_ref().ok()
    }

    /// Returns whether an operator can resolve the entry: the entry must be a claim whose lease has expired.
    pub fn is_resolvable(&self) -> bool {
        matches!(self.state, State::OutcomeUnknown | State::PastLease)
    }

    /// Returns the state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns an id that names the entry without its key: the first 128 bits of the SHA-256 digest of the record key.
    ///
    /// A reader who can guess a key can verify the guess with the id.
    pub fn id(&self) -> Option<String> {
        self.key.as_ref().map(|key| digest(key.as_str()))
    }

    /// Returns when the key was claimed or the response was recorded, by the clock of the process that did it.
    pub fn since(&self) -> Option<SystemTime> {
        match self.found.as_ref().ok()?.state {
            EntryState::Claimed { token, .. } => Some(token.created_at()),
            EntryState::Completed { recorded_at, .. } => Some(recorded_at),
        }
    }

    /// Returns a value that a purge or a resolution must repeat, so that it changes only the entry that the operator
    /// has read. Another claim, or another state of the same claim, has another value.
    pub fn confirmation(&self) -> Option<String> {
        let which = match &self.found {
            Ok(Entry { state: EntryState::Claimed { token, .. }, .. }) => format!("{token:?}"),
            Ok(Entry { state: EntryState::Completed { recorded_at, .. }, .. }) => format!("{recorded_at:?}"),
            Err(reason) => reason.clone(),
        };
        // A record key has no line breaks.
        Some(digest(&format!("{}\n{}\n{which}", self.key.as_ref()?.as_str(), self.state)))
    }

    /// Returns a report of this view.
    pub fn report(&self, keys: Keys) -> EntryReport {
        let key = self.key.as_ref().map(RecordKey::key);
        let mut report = EntryReport {
            id: self.id(),
            state: self.state,
            scope: self.key.as_ref().map(|key| key.scope().into_owned()),
            caller: self.key.as_ref().and_then(RecordKey::caller).map(Cow::into_owned),
            key_hint: key.as_deref().map(masked),
            key: key.filter(|_| keys == Keys::Revealed).map(Cow::into_owned),
            since: self.since().and_then(timestamp),
            ..EntryReport::nothing(self.state)
        };
        match &self.found {
            Err(reason) => report.reason = Some(reason.clone()),
            Ok(entry) => {
                report.expires_in_ms = entry.expires_in.map(millis);
                report.fingerprint = Some(entry.fingerprint.to_string()[..16].to_owned());
                match entry.state {
                    EntryState::Claimed { attempt, lease, .. } => {
                        report.attempt = Some(attempt);
                        report.lease_left_ms = lease.map(millis);
                    }
                    EntryState::Completed { status, body_bytes, .. } => {
                        report.status = Some(status.as_u16());
                        report.body_bytes = body_bytes;
                    }
                }
            }
        }
        report
    }
}

/// A report of an entry. In JSON every member is always present, and `null` if it has no value.
///
/// `Debug` shows neither key nor caller.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EntryReport {
    /// See [`EntryView::id`].
    pub id: Option<String>,
    /// The state.
    pub state: State,
    /// The scope.
    pub scope: Option<String>,
    /// The caller, if the handler names one; a digest if the registry stores digests.
    pub caller: Option<String>,
    /// The key, if keys are revealed; a digest if the registry stores digests.
    pub key: Option<String>,
    /// The key as [`masked`](super::masked) shows it.
    pub key_hint: Option<String>,
    /// How many times the key was claimed, if it is claimed.
    pub attempt: Option<u32>,
    /// When the key was claimed or recorded, in the format of RFC 3339.
    pub since: Option<String>,
    /// The rest of the lease, in milliseconds.
    pub lease_left_ms: Option<u64>,
    /// The status of the response.
    pub status: Option<u16>,
    /// The length of the recorded body.
    pub body_bytes: Option<u64>,
    /// The first 64 bits of the fingerprint.
    pub fingerprint: Option<String>,
    /// How long the entry is still kept, in milliseconds; `None` if it never expires or cannot be read.
    pub expires_in_ms: Option<u64>,
    /// Why the entry cannot be read.
    pub reason: Option<String>,
    /// Whether a text is shortened: see [`shortened`](Self::shortened).
    pub shortened: bool,
}

impl fmt::Debug for EntryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, state, scope, .. } = self;
        f.debug_struct("EntryReport")
            .field("id", id)
            .field("state", state)
            .field("scope", scope)
            .finish_non_exhaustive()
    }
}

/// The longest text in a listing, in characters. Names of scopes are never longer.
const LONGEST_LISTED: usize = 255;

impl EntryReport {
    fn nothing(state: State) -> Self {
        Self {
            id: None,
            state,
            scope: None,
            caller: None,
            key: None,
            key_hint: None,
            attempt: None,
            since: None,
            lease_left_ms: None,
            status: None,
            body_bytes: None,
            fingerprint: None,
            expires_in_ms: None,
            reason: None,
            shortened: false,
        }
    }

    /// Returns the report for a listing of many entries: scope, caller, key and reason with at most 255 characters
    /// each. A longer text is cut after 255 characters and ends with `…`, and `shortened` is true.
    ///
    /// A caller can be any text, and a listing of callers of 60 kB would take 60 kB for each.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        for text in [&mut self.scope, &mut self.caller, &mut self.key, &mut self.reason].into_iter().flatten() {
            if let Some((end, _)) = text.char_indices().nth(LONGEST_LISTED) {
                text.truncate(end);
                text.push('…');
                self.shortened = true;
            }
        }
        self
    }
}

fn digest(text: &str) -> String {
    format!("{:x}", Bytes::copy_from_slice(&Sha256::digest(text)[..16]))
}

/// Returns the time in the format of RFC 3339. Returns `None` for a time that this format cannot express, because the
/// formatter would fail.
fn timestamp(time: SystemTime) -> Option<String> {
    const YEAR_10000: Duration = Duration::from_secs(70_389_528 * 60 * 60);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok().filter(|&since| since < YEAR_10000)?;
    Some(humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string())
}

pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
