//! The values of a policy's arguments.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{Method, StatusCode};

/// The responses that are recorded (`cache`, `cache_if`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cache<'a> {
    /// Responses whose status is in one of these ranges, both ends included.
    Statuses(&'a [(u16, u16)]),
    /// Every response (`cache = all`).
    All,
    /// Responses for which the function of `cache_if` returns true.
    Predicate,
}

/// The source of the key (`header`, `key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// The header of [`Policy::header`](crate::Policy::header).
    Header,
    /// An expression over the handler's arguments.
    Expression,
}

/// The treatment of a request with a malformed key (`invalid_key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKeyPolicy {
    /// The request gets 400.
    Reject,
    /// The request counts as one without a key.
    Ignore,
}

/// The form that keys must have (`key_format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyFormat {
    /// Any form.
    Any,
    /// A UUID of any version, in its form with hyphens (RFC 9562). Upper and lower case are both valid, and name
    /// different keys, because keys are compared byte for byte. The nil UUID is rejected: a program without a key sends
    /// it.
    Uuid,
}

/// The request methods that are guarded (`methods`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Methods<'a> {
    /// The methods with these names.
    Only(Names<'a>),
    /// Every method (`methods = any`).
    Any,
}

impl Methods<'_> {
    pub(crate) fn contain(self, method: &Method) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.contains(method.as_str()),
        }
    }
}

/// The content that a retry must repeat (`fingerprint`), besides the credentials if no caller is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FingerprintSource {
    /// Method, authority, path, query, media type, content coding and body.
    Request,
    /// Like `Request`, but a JSON body counts in its canonical form.
    Json,
    /// Method, authority, path, and an expression over the handler's arguments instead of query and body.
    Expression,
    /// Only an expression over the handler's arguments.
    Only,
    /// Nothing of the request's content.
    None,
}

/// The parts of a request that the fingerprint needs before the handler's extractors get the body.
#[derive(Clone, Copy, Debug)]
pub enum Reads {
    Nothing,
    /// Method, authority and path, without the query.
    Target,
    Body,
    Json,
}

impl FingerprintSource {
    pub(crate) fn reads(self) -> Reads {
        match self {
            Self::Request => Reads::Body,
            Self::Json => Reads::Json,
            Self::Expression => Reads::Target,
            Self::Only | Self::None => Reads::Nothing,
        }
    }
}

/// The answer to a duplicate of a running request (`in_flight`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InFlight {
    /// The duplicate gets 409 at once.
    Reject,
    /// The duplicate waits for at most this time, and gets the response of the running request if it is recorded by
    /// then. A request that waits never executes. If the running request ends without a recorded response, the waiting
    /// one gets 409 `not_recorded`.
    Wait(Duration),
}

/// The treatment of the next request if the process died in the handler (`after_crash`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterCrash {
    /// The next request runs the handler again, so the handler runs at least once.
    Rerun,
    /// The next request is rejected, so the handler runs at most once. The claim never expires, whatever the ttl. It
    /// stays until it is completed, resolved or purged.
    Reject,
}

impl AfterCrash {
    /// Returns whether a handler may run again although an earlier attempt may have run.
    pub(crate) const fn may_rerun(self) -> bool {
        matches!(self, Self::Rerun)
    }
}

/// The answer to a retry if the first response was too large to record, had no end, or was passed on unrecorded
/// (`oversize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Oversize {
    /// The retry gets 409 with the original status.
    Reject,
    /// The retry runs the handler again.
    Rerun,
}

/// The recording of a response whose length is not known before its end (`stream`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// The response is recorded up to [`Policy::max_body`](crate::Policy::max_body) bytes while it is sent.
    Record,
    /// Only the status is recorded. The response ends when its client disconnects.
    Pass,
}

/// The treatment of a request if the store is unreachable (`on_store_error`).
///
/// A full store is reachable, so the request gets 503 in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnStoreError {
    /// The request gets 503.
    Reject,
    /// The handler runs unguarded.
    Run,
}

/// The isolation level of the transaction of a handler's `Tx` (`isolation`).
///
/// The level makes no difference on SQLite, which has one writer at a time and whose transactions are always
/// serializable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// All statements see the database as it was when the transaction began.
    RepeatableRead,
    /// The transaction behaves as if it ran alone.
    Serializable,
}

impl Cache<'_> {
    /// Returns whether a response with this status is recorded. Returns `None` if only the predicate can decide.
    pub(crate) fn admits(self, status: StatusCode) -> Option<bool> {
        match self {
            Self::All => Some(true),
            Self::Predicate => None,
            Self::Statuses(ranges) => {
                let status = status.as_u16();
                Some(ranges.iter().any(|&(low, high)| RangeInclusive::new(low, high).contains(&status)))
            }
        }
    }
}

/// Names of a policy: of headers, in lower case, or of methods.
#[derive(Clone, Copy)]
pub struct Names<'a>(Listed<'a>);

/// The names, as constants of the program or as texts of a builder.
#[derive(Clone, Copy)]
enum Listed<'a> {
    Constants(&'static [&'static str]),
    Built(&'a [String]),
}

impl<'a> Names<'a> {
    /// Wraps names that are constants of the program. The attribute's expansion calls this function.
    #[doc(hidden)]
    pub const fn constants(names: &'static [&'static str]) -> Self {
        Self(Listed::Constants(names))
    }

    pub(super) fn built(names: &'a [String]) -> Self {
        Self(Listed::Built(names))
    }

    /// Returns the names, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (constants, built): (&'static [&'static str], &'a [String]) = match self.0 {
            Listed::Constants(names) => (names, &[]),
            Listed::Built(names) => (&[], names),
        };
        constants.iter().copied().chain(built.iter().map(String::as_str))
    }

    /// Returns whether this name is in the list.
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|listed| listed == name)
    }
}

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Names<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Names<'_> {}

impl<const N: usize> PartialEq<[&str; N]> for Names<'_> {
    fn eq(&self, other: &[&str; N]) -> bool {
        self.iter().eq(other.iter().copied())
    }
}
