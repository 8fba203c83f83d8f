//! Idempotency keys for single axum handlers: the first request with a given `Idempotency-Key` runs the handler and
//! records the response, and every later request with that key gets the recorded response.
//!
//! **A client that sent a key never has its request executed twice unless the handler's policy allows it.**
//!
//! ```
//! use axum::{Router, http::StatusCode, routing::post};
//! use idempotent_runtime::{Registry, idempotent, store::MemoryStore};
//!
//! #[idempotent(scope = "charges", ttl = "24h", cache = [201, 409])]
//! async fn create_charge(order: String) -> (StatusCode, String) {
//!     (StatusCode::CREATED, format!("charged for {order}"))
//! }
//!
//! let registry = Registry::new(MemoryStore::new());
//! let app: Router = Router::new().route("/charges", post(create_charge)).layer(registry.layer());
//! ```
//!
//! # Where to look
//!
//! | | |
//! |---|---|
//! | [`guide`] | guarantees, stores, keys, recorded statuses, tests, operation; migration from other crates |
//! | [`macro@idempotent`] | the attribute and its arguments |
//! | [`IdempotencyLayer`] | the same engine for routes that cannot be annotated, and for whole routers |
//! | [`install`], [`Registry`] | the stores of the handlers, and the settings of all handlers; [`Registry::drain`] at shutdown |
//! | [`store`] | the stores of this crate, and the trait for a store of your own |
//! | `Tx` | the handler's transaction: its writes and its record commit together (features `sqlite`, `postgres`) |
//! | [`Idempotency`] | what a handler can know about its key: the attempt, keys for other services |
//! | [`Idempotency::step`] | parts of a handler that an attempt after a crash does not repeat |
//! | [`Rejection`], [`rejection::stripe`] | what a client gets in place of a response: problem details, or errors that Stripe's SDKs read |
//! | [`policies`] | every annotated handler of the program |
//! | `inspector` | a page and JSON for operators, behind your own authentication (feature `inspector`) |
//! | [`openapi`] | what an OpenAPI document says about an annotated handler (features `utoipa`, `aide`) |
//! | [`testing`] | registries that count, stores that fail on command, the conformance suite (feature `testing`) |
//!
//! # What happens to a request
//!
//! 1. axum runs the extractors of the arguments before the claim. If an extractor fails, its rejection is the response,
//!    and no key is claimed.
//! 2. Without a key the handler runs unguarded, unless the policy says `required`.
//! 3. The guard claims the key in the store. If the key has a record, the record is replayed. If another request with
//!    the key still runs, this one waits or is rejected. If the key was used for another request, this one is rejected.
//! 4. The arguments after the claim are extracted ([`extraction`](guide::extraction)), and the handler runs. The claim
//!    has a lease that is renewed while the handler runs. If the client disconnects or a timeout layer gives up, the
//!    handler continues as a separate task.
//! 5. If the policy records the response's status, the response is recorded and then sent. Otherwise the key is free
//!    again.
//!
//! # Features
//!
//! `macros` and `memory` are on by default. [`guide::compatibility`](guide::compatibility#features) lists all features.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(docsrs, doc(auto_cfg(hide(feature = "__transactions"))))]
#![warn(missing_debug_implementations)]

// The attribute's expansion names the crate, and the concurrency tests are part of the crate.
#[cfg(all(test, shuttle))]
extern crate self as idempotent_runtime;

mod background_task;
mod backoff;
mod caller_limit;
#[cfg(all(test, shuttle))]
mod concurrency_tests;
mod deadline;
mod error_text;
mod fingerprint;
pub mod guide;
mod hexadecimal;
mod idempotency_key;
#[cfg(feature = "inspector")]
pub mod inspector;
mod key;
mod keyed_notify;
mod layer;
mod lease;
mod observe;
#[cfg(any(feature = "aide", feature = "utoipa"))]
pub mod openapi;
#[cfg(feature = "operate")]
pub mod operate;
mod policy;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod reconnect;
mod record;
mod registry;
pub mod rejection;
mod request;
mod retries;
mod running_limit;
mod step;
pub mod store;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg_attr(
    not(feature = "__transactions"),
    expect(dead_code, reason = "no store of the other features has transactions")
)]
mod transaction;

pub use crate::fingerprint::{Fingerprint, MalformedFingerprint};
pub use crate::idempotency_key::{IdempotencyKey, InvalidKey};
pub use crate::key::{MalformedRecordKey, RecordKey};
pub use crate::layer::{IdempotencyLayer, IdempotencyService};
#[cfg(feature = "metrics")]
pub use crate::observe::metrics;
pub use crate::policy::Policy;
pub use crate::policy::builder::PolicyBuilder;
pub use crate::policy::invalid_policy::InvalidPolicy;
pub use crate::policy::overrides::PolicyOverride;
pub use crate::policy::values::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, Isolation, KeyFormat, KeySource, Methods, Names,
    OnStoreError, Oversize, Stream,
};
#[cfg(feature = "seal")]
pub use crate::record::sealing::{MalformedSealingKey, SealingKey, SealingKeys};
pub use crate::record::{Record, RecordedBody};
pub use crate::registry::Registry;
pub use crate::registry::build::RegistryBuilder;
pub use crate::registry::install::{install, policies};
pub use crate::registry::install_error::InstallError;
#[doc(inline)]
pub use crate::rejection::problem::Rejection;
pub use crate::rejection::request::RejectedRequest;
pub use crate::request::completion::Completion;
pub use crate::request::extract::Guarded;
pub use crate::request::idempotency::Idempotency;
pub use crate::step::error::{StepError, StepErrorKind};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use crate::transaction::connection::TxConnection;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use crate::transaction::savepoint::Savepoint;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use crate::transaction::tx::Tx;
// The crate of the attribute does not depend on this crate, so it cannot run an example.
/// Makes retried requests to one axum handler safe: the first request with a given `Idempotency-Key` runs the handler
/// and records the response, and every later request with that key gets the recorded response.
///
/// ```
/// use axum::http::StatusCode;
/// use idempotent_runtime::idempotent;
///
/// #[idempotent(scope = "charges", ttl = "24h", cache = [201, 409])]
/// async fn create_charge(order: String) -> (StatusCode, String) {
///     (StatusCode::CREATED, format!("charged for {order}"))
/// }
/// ```
///
/// # Arguments
///
#[doc = include_str!("guide/arguments.md")]
#[cfg(feature = "macros")]
#[doc(inline)]
pub use idempotent_macros::idempotent;

/// The names that the attribute's expansion uses. They are not part of the public interface.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "aide")]
    pub use axum::response::Response;
    #[cfg(feature = "macros")]
    pub use idempotent_macros::idempotent;
    pub use inventory;
    #[cfg(feature = "utoipa")]
    pub use utoipa;

    pub use crate::__policy as policy;
    #[cfg(feature = "aide")]
    pub use crate::openapi::aide::{Documented, identity};
    #[cfg(feature = "utoipa")]
    pub use crate::openapi::utoipa::operation;
    pub use crate::policy::Policy;
    pub use crate::policy::Settings;
    pub use crate::policy::constants::{constant_lease, constant_scope, constant_store, constant_ttl, constant_wait};
    pub use crate::policy::registration::Registration;
    pub use crate::policy::values::{
        AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, Isolation, KeyFormat, KeySource, Methods,
        Names, OnStoreError, Oversize, Stream,
    };
    pub use crate::request::caller_expression::CallerExpression;
    pub use crate::request::completion::Completion;
    pub use crate::request::deferred::ExtractionTime;
    pub use crate::request::expansion::{OpenGate, into_response, never, open, typed};
    pub use crate::request::extract::{Buffered, BufferedJson, Guarded, ReadByGuard, Streamed, Targeted, ViaGuarded};
    pub use crate::request::identify::Gate;
    pub use crate::request::key_expression::KeyExpression;
    pub use crate::request::plain_body::Probe;
    pub use crate::transaction::argument::{Argument, OtherArgument, check_extracted_after_claim};
}

/// The README that crates.io shows for this crate.
#[cfg(all(doctest, feature = "macros", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
