//! Idempotency keys for single axum handlers.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod fingerprint;
mod key;
mod policy;
mod record;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use self::fingerprint::{Fingerprint, MalformedFingerprint};
pub use self::key::{IdempotencyKey, InvalidKey, MalformedRecordKey, RecordKey};
pub use self::policy::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, KeySource, Methods, OnStoreError, Oversize,
    Policy, policies,
};
pub use self::record::{HeadersText, Record, RecordedBody};
