//! Why a store could not answer.

use std::fmt;
use std::time::Duration;

/// Why a store could not answer.
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
    /// The store has no room for a new claim.
    #[error("the store is full")]
    Full,
    /// The store did not answer within the registry's time limit. The call may have taken effect.
    #[error("the store did not answer within {0:?}")]
    TimedOut(Duration),
    /// The store takes no record of this size, however often it is asked. The claim is as it was.
    #[error("the record is too large for the store")]
    RecordTooLarge(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The entry of the key cannot be read. The request is rejected and never runs again.
    #[error("what is stored cannot be read: {0}")]
    Damaged(String),
}

impl StoreError {
    /// The store failed for this reason.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// The call was not sent for this reason. It had no effect, so a claim need not be released.
    pub fn not_sent(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::NotSent(source.into())
    }

    /// The store never takes this record, for this reason. The engine records the outcome without the response instead.
    pub fn record_too_large(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::RecordTooLarge(source.into())
    }

    /// The entry of the key cannot be read for this reason.
    pub fn damaged(reason: impl fmt::Display) -> Self {
        Self::Damaged(reason.to_string())
    }
}
