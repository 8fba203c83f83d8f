//! The values of a policy's arguments.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::StatusCode;

/// Which responses are recorded (`cache`, `cache_if`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cache<'a> {
    /// Those whose status is in one of these ranges, both ends included.
    Statuses(&'a [(u16, u16)]),
    /// Every one (`cache = all`).
    All,
    /// Those for which the function of `cache_if` answers true.
    Predicate,
}

/// Where the key comes from (`header`, `key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// The header of [`Policy::header`].
    Header,
    /// An expression over the handler's arguments.
    Expression,
}

/// What becomes of a request with a malformed key (`invalid_key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKeyPolicy {
    /// It is answered with 400.
    Reject,
    /// It counts as a request without a key.
    Ignore,
}

/// Which request methods are guarded (`methods`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Methods<'a> {
    /// These, by their names.
    Only(&'a [&'static str]),
    /// Every one (`methods = any`).
    Any,
}

/// What a reused key must repeat (`fingerprint`), beside the credentials where no caller is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FingerprintSource {
    /// Method, authority, path, query, media type, content coding and body.
    Request,
    /// The same, but for the body in its canonical form where it is JSON.
    Json,
    /// Method, authority, path, and an expression over the handler's arguments in place of query and body.
    Expression,
    /// An expression over the handler's arguments, and nothing else of the request.
    Only,
    /// Nothing of the request's content.
    None,
}

/// What the fingerprint needs of a request before its handler's extractors have the body.
#[derive(Clone, Copy)]
pub enum Reads {
    Nothing,
    /// Without the query.
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

/// How a duplicate of a running request is answered (`in_flight`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InFlight {
    /// With 409, at once.
    Reject,
    /// With the response of the running request, if it comes within this time. A request that waits is never executed: if the
    /// running one ends without a recorded response, it gets 409 `not_recorded`.
    Wait(Duration),
}

/// What the next request may do when the process that ran the handler died (`after_crash`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterCrash {
    /// Run the handler again: at least once.
    Rerun,
    /// Nothing: at most once. The claim never expires, whatever the ttl: it is rejected until it is completed or purged.
    Reject,
}

/// What a retry of a request gets whose response was too large to record (`oversize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Oversize {
    /// 409 with the original status.
    Reject,
    /// The handler runs again.
    Rerun,
}

/// What becomes of a request whose store cannot be asked (`on_store_error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnStoreError {
    /// It is answered with 503.
    Reject,
    /// The handler runs unguarded.
    Run,
}

/// How far the transaction of a handler's `Tx` is isolated from others (`isolation`).
///
/// SQLite has one writer at a time, whose transactions are always serializable: there it makes no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// All its statements see the database as it was when the transaction began.
    RepeatableRead,
    /// As if it ran alone.
    Serializable,
}

impl Cache<'_> {
    /// Whether a response of this status is recorded; `None` when only the predicate can tell.
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

/// Names of headers, in lower case.
#[derive(Clone, Copy)]
pub struct HeaderNames<'a>(pub(super) Names<'a>);

/// In the text of the program, or of a builder.
#[derive(Clone, Copy)]
pub(super) enum Names<'a> {
    Static(&'static [&'static str]),
    Built(&'a [String]),
}

impl<'a> HeaderNames<'a> {
    /// The names, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (literals, built): (&'static [&'static str], &'a [String]) = match self.0 {
            Names::Static(names) => (names, &[]),
            Names::Built(names) => (&[], names),
        };
        literals.iter().copied().chain(built.iter().map(String::as_str))
    }

    /// Whether this name, in lower case, is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|listed| listed == name)
    }
}

impl fmt::Debug for HeaderNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<const N: usize> PartialEq<[&str; N]> for HeaderNames<'_> {
    fn eq(&self, other: &[&str; N]) -> bool {
        self.iter().eq(other.iter().copied())
    }
}
