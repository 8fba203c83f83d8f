//! Idempotency keys for single axum handlers.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod completion;
mod engine;
mod fingerprint;
mod guarded;
mod headers;
mod idempotency;
mod key;
mod lease;
mod policy;
mod record;
mod refusal;
mod registry;
pub mod store;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;

pub use self::fingerprint::{Fingerprint, MalformedFingerprint};
pub use self::guarded::Guarded;
pub use self::idempotency::Idempotency;
pub use self::key::{IdempotencyKey, InvalidKey, MalformedRecordKey, RecordKey};
pub use self::policy::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, KeySource, Methods, OnStoreError, Oversize,
    Policy, policies,
};
pub use self::record::{HeadersText, Record, RecordedBody};
pub use self::refusal::Refusal;
pub use self::registry::{InstallError, Registry, RegistryBuilder, install};
#[cfg(feature = "macros")]
pub use idempotent_macros::idempotent;

/// What the attribute's expansion names; no part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use std::boxed::Box;

    pub use axum::response::Response;
    #[cfg(feature = "macros")]
    pub use idempotent_macros::idempotent;
    pub use inventory;

    pub use crate::completion::Completion;
    pub use crate::engine::{Gate, KeyExpression, Passage, into_response, run};
    pub use crate::guarded::{Buffered, Guarded, Streamed, ViaGuarded};
    pub use crate::policy::{
        AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, KeySource, Methods, OnStoreError, Oversize,
        Policy, Registration,
    };
}
