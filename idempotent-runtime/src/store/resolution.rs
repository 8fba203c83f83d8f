//! The decision of an operator about a claim whose handler may have done its work, and the result of the decision.

use std::time::Duration;

use crate::record::Record;
use crate::store::claim::Token;

/// The finding of an operator about a claim with an expired lease, for
/// [`StoreAdmin::resolve`](super::StoreAdmin::resolve).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// The request was executed. The claim becomes `record`.
    #[non_exhaustive]
    Executed {
        /// The token of the record. It differs from the token of the claim, so that a late holder of the claim does not
        /// take this record for its own.
        token: Token,
        /// The response that retries get, with the fingerprint of the claim.
        record: Record,
        /// The time for which the record is kept from now on.
        ttl: Duration,
    },
    /// The request was not executed. The key has no entry afterwards.
    NotExecuted,
}

impl Resolution {
    /// Creates the resolution of a request that was executed. Its retries get this record for `ttl`.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// use http::StatusCode;
    /// use idempotent_runtime::store::Resolution;
    /// use idempotent_runtime::{Fingerprint, Record, RecordedBody};
    ///
    /// let fingerprint = Fingerprint::from_bytes([7; 32]);
    /// let body = RecordedBody::Whole("paid".into());
    /// let record = Record::new(StatusCode::CREATED, Vec::new(), body, fingerprint, SystemTime::now());
    /// let resolution = Resolution::executed(record, Duration::from_secs(24 * 60 * 60));
    /// assert_ne!(resolution, Resolution::NotExecuted);
    /// ```
    pub fn executed(record: Record, ttl: Duration) -> Self {
        Self::Executed { token: Token::unique(), record, ttl }
    }
}

/// The result of a [`Resolution`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a claim that was not resolved is still there"]
#[non_exhaustive]
pub enum Resolved {
    /// The claim has ended as the resolution says.
    Yes,
    /// The lease of the claim has not expired, so its handler may run. Nothing has changed.
    StillRunning,
    /// The key no longer has a claim with this token. It was resolved, completed, taken over, released or purged, or it
    /// has expired. Nothing has changed.
    ChangedHands,
}
