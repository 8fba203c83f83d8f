//! Why a store could not answer.

use std::fmt;
use std::time::Duration;

/// Why a store could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached, or failed; the call may have taken effect.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot be reached, or its turn did not come in time: the call was not sent, and never will be.
    #[error("the store could not be asked")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It has no room for a new claim.
    #[error("the store is full")]
    Full,
    /// It did not answer within the registry's time limit; the call may have taken effect.
    #[error("the store did not answer within {0:?}")]
    TimedOut(Duration),
    /// What stands under the key cannot be read. The request is rejected, never run again.
    #[error("what is stored cannot be read: {0}")]
    Damaged(String),
}

impl StoreError {
    /// The store failed for this reason.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// The call was not sent for this reason: it had no effect, and a claim need not be given back.
    pub fn not_sent(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::NotSent(source.into())
    }

    /// What stands under the key cannot be read for this reason.
    pub fn damaged(reason: impl fmt::Display) -> Self {
        Self::Damaged(reason.to_string())
    }
}
