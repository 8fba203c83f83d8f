//! The reasons why a store could not answer.

use std::fmt;
use std::time::Duration;

use crate::store::shortage;

/// The reason why a store could not answer.
///
/// # Examples
///
/// ```
/// use std::error::Error;
/// use std::io;
///
/// use idempotent_runtime::store::StoreError;
///
/// let error = StoreError::unavailable(io::Error::other("the connection is closed"));
/// assert_eq!(error.to_string(), "the store is unavailable");
/// assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("the connection is closed"));
///
/// let malformed = "seven".parse::<u64>().map_err(StoreError::damaged);
/// assert!(matches!(malformed, Err(StoreError::Damaged(_))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached, or it failed. The call may have taken effect.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store cannot be reached, or the call waited too long for its turn. The call was not sent and never will be.
    #[error("the store could not be asked")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store can be asked, but has no room for a new claim. Nothing was claimed.
    #[error("the store is full")]
    Full,
    /// The entries of this caller have used up its share of the store. Entries of other callers still have room.
    /// Nothing was claimed.
    #[error("the caller has used up its share of the store")]
    OverQuota,
    /// The store did not answer within the registry's time limit. The call may have taken effect.
    #[error("the store did not answer within {0:?}")]
    TimedOut(Duration),
    /// The store will not take this record, however often it is asked. The record is too large, or a limit of the
    /// database rejects it. The claim is unchanged.
    #[error("the store will never accept the record")]
    RecordRejected(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The entry of the key cannot be read. The request is rejected, and its handler does not run until the entry is
    /// purged.
    #[error("what is stored cannot be read: {0}")]
    Damaged(String),
}

impl StoreError {
    /// Creates the error of a store that failed for this reason.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// Creates the error of a call that was not sent for this reason. It had no effect, so a claim need not be
    /// released.
    pub fn not_sent(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::NotSent(source.into())
    }

    /// Creates the error of a store that can be asked, but takes no claims for this reason. Nothing was claimed.
    #[cfg(feature = "redis")]
    pub(crate) fn takes_no_claims(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::not_sent(TakesNoClaims(reason.into()))
    }

    /// Creates the error of a store that works, but has no time or resources for this call, which may have taken
    /// effect. A client can cause that, so `on_store_error = "run"` runs no handler: see
    /// [`is_unreachable`](Self::is_unreachable).
    ///
    /// ```
    /// use idempotent_runtime::store::StoreError;
    ///
    /// let error = StoreError::busy("the row is locked");
    /// assert!(!error.is_unreachable());
    /// assert!(matches!(error, StoreError::Unavailable(_)));
    /// ```
    pub fn busy(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::unavailable(Busy(reason.into()))
    }

    /// Creates the error of a [`busy`](Self::busy) store to which the call was not sent, so it had no effect.
    ///
    /// ```
    /// use idempotent_runtime::store::StoreError;
    ///
    /// let error = StoreError::busy_not_sent("no connection of the pool became free");
    /// assert!(!error.is_unreachable());
    /// assert!(matches!(error, StoreError::NotSent(_)));
    /// ```
    pub fn busy_not_sent(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::not_sent(Busy(reason.into()))
    }

    /// Returns the same error as one of a store that works but is busy.
    pub(crate) fn into_busy(self) -> Self {
        match self {
            Self::NotSent(source) => Self::busy_not_sent(source),
            error => Self::busy(error),
        }
    }

    /// Creates the error of a store that will never accept this record, for this reason. The engine then records the
    /// outcome without the response.
    pub fn record_rejected(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::RecordRejected(source.into())
    }

    /// Returns whether the store is unreachable, as far as that is known. A situation that a client can cause does not
    /// count:
    ///
    /// - The store is full, or its entry cannot be read.
    /// - The store answers other calls while this one waits.
    /// - The store is short of connections, memory or time for the call.
    /// - The store is a Redis that evicts keys.
    /// - This process has no files, memory or ports left. An [`io::Error`](std::io::Error) among the sources says so.
    ///
    /// ```
    /// use idempotent_runtime::store::StoreError;
    ///
    /// assert!(StoreError::unavailable("the connection is closed").is_unreachable());
    /// assert!(!StoreError::Full.is_unreachable());
    /// ```
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::TimedOut(_) => true,
            Self::Unavailable(source) | Self::NotSent(source) => {
                !self.is_busy() && !source.is::<TakesNoClaims>() && !shortage::is_cause_of(&**source)
            }
            Self::Full | Self::OverQuota | Self::RecordRejected(_) | Self::Damaged(_) => false,
        }
    }

    /// Returns whether the error was made by [`busy`](Self::busy) or [`busy_not_sent`](Self::busy_not_sent).
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Unavailable(source) | Self::NotSent(source) if source.is::<Busy>())
    }

    /// Returns whether the error was made by [`busy`](Self::busy) with a reason of this type.
    #[cfg(feature = "sqlite")]
    pub(crate) fn is_busy_with<T: std::error::Error + 'static>(&self) -> bool {
        matches!(self, Self::Unavailable(source) if source.downcast_ref::<Busy>().is_some_and(|busy| busy.0.is::<T>()))
    }

    /// Creates the error of an entry that cannot be read for this reason.
    pub fn damaged(reason: impl fmt::Display) -> Self {
        Self::Damaged(reason.to_string())
    }
}

/// The reason why a store that can be asked takes no claims.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct TakesNoClaims(Box<dyn std::error::Error + Send + Sync>);

/// The reason of [`StoreError::busy`].
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Busy(Box<dyn std::error::Error + Send + Sync>);

/// The call had no turn, no connection became free, or no answer came in time. Only other calls can show whether the
/// store is unreachable.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Waited(pub(crate) Box<dyn std::error::Error + Send + Sync>);
