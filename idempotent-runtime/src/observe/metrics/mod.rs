//! Metrics of the guard, for the recorder that the application installs with the crate
//! [`metrics`](https://docs.rs/metrics).
//!
//! | metric | kind | labels | meaning |
//! |---|---|---|---|
//! | [`REQUESTS_TOTAL`] | counter | `scope`, `outcome` | guarded requests that have ended; each has one outcome. A request without a key counts only if it was rejected or ran in a `Tx` |
//! | [`IN_FLIGHT`] | gauge | `scope` | handlers of this process that have a claim or a `Tx`, until the claim or the `Tx` is recorded, released or rolled back |
//! | [`WITHOUT_CLIENT`] | gauge | `scope` | requests of this process that continue although their clients have disconnected |
//! | [`OLDEST_IN_FLIGHT_SECONDS`] | gauge | `scope` | the age of the oldest handler in flight, or 0 |
//! | [`REPLAY_AGE_SECONDS`] | histogram | | the age of each record when it is replayed |
//! | [`STORE_DURATION_SECONDS`] | histogram | `store`, `op` | how long each call to a store took, including calls that failed or exceeded the time limit |
//! | [`STORE_ERRORS_TOTAL`] | counter | `store`, `op` | calls to a store that failed or exceeded the time limit |
//! | [`UNKNOWN_OUTCOMES`] | gauge | `scope` | requests in the stores that may have been executed and must not run again, until each is completed, resolved or purged |
//! | [`MISMATCHES_TOTAL`] | counter | `scope`, `differs`, `header` | requests that were rejected because their key was used for another request |
//! | [`STEP_FAILURES_TOTAL`] | counter | `scope`, `outcome` | steps whose handler got a [`StepError`](crate::StepError) in place of a result. The request of that handler counts in [`REQUESTS_TOTAL`] too, by its response |
//! | [`LEASE_LOST_TOTAL`] | counter | `scope` | claims that another process took while their handler ran |
//!
//! No label has any data of a request. Each label has a bounded number of values, which the program determines.
//!
//! - **`scope`** is the handler's. For a step it is the scope of its claim, or empty if no handler is known. The series
//!   of all annotated handlers begin at 0 when a registry is installed or put around routes, so that an alert sees the
//!   first event of a process; those of an [`IdempotencyLayer`](crate::IdempotencyLayer) when it is put around a
//!   service. If the recorder is installed later, the series begin with the first guarded request.
//! - **`outcome`** equals the span's `idempotency.outcome`: `recorded`, `not_recorded`, `too_large`, `broken`,
//!   `recording_failed`, `claim_lost`, `panicked`, `failed`, `left_to_handler`, `unguarded`, `replayed`, or the
//!   [code](crate::Rejection::code) of a rejection, which means that the handler did not run. The code `not_recorded`
//!   is reported as `waited_not_recorded`. A response that could not be recorded at once counts as `recording_failed`,
//!   even if it is recorded later. For a step it is the code of [`StepError::rejection`](crate::StepError::rejection).
//! - **`differs`** is the part that the retry did not repeat: `credentials`, `target` or `body`; if several differ, the
//!   first of these. **`header`** is the name of the one credential header that differs, and empty otherwise. It is
//!   never the value. The names are those of [`credential_headers`](crate::RegistryBuilder::credential_headers).
//! - **`store`** is the name of the store in the registry, or `default`. The error series of its `claim`, `renew`,
//!   `complete` and `release` begin at 0, like the series of the handlers.
//! - **`op`** is `claim`, `renew`, `complete` or `release`. For a `Tx` it is `begin`, `claim`, `record`, `verify`
//!   (whether the transaction can still be committed), `commit`, `roll_back`, or `look_up` (whether a commit took place
//!   whose response was lost). A `commit` fails also if a deferred constraint of the handler's own tables is violated.
//!   A request that waits for another one uses `get`. So does the inspector, which also uses `purge` and `resolve`.
//!   `count` is the call for [`UNKNOWN_OUTCOMES`].
//!
//! The age of the oldest handler is updated when a handler begins or ends, every five seconds while one runs, and by
//! [`refresh`]. The age counts from the claim. A handler with a `Tx`, which has no lease, counts like any other
//! handler.
//!
//! **Unknown outcomes** are counted in the stores, whichever process caused them. Every process that uses a store
//! reports the same number, so take the `max` over processes, not the `sum`. Scopes of other programs that use the
//! store are included. They are counted
//!
//! - five seconds after a registry is built (if it is built outside of a runtime, from its first guarded request on);
//! - every 15 seconds;
//! - when [`refresh`] is called. The result is in the next scrape.
//!
//! At most 10,000 are counted in each store. If a store does not answer, the number does not change.
//!
//! Install the recorder before [`install`](crate::install) or [`Registry::layer`](crate::Registry::layer) is called,
//! and at the latest before the first guarded request: metrics that are created without a recorder are never reported.
//!
//! # Examples
//!
//! ```
//! use axum::{Router, routing::get};
//! use idempotent_runtime::metrics;
//! use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
//!
//! // Without buckets the exporter makes summaries, which cannot be added up over processes.
//! let recorder = PrometheusBuilder::new()
//!     .set_buckets_for_metric(
//!         Matcher::Full(metrics::STORE_DURATION_SECONDS.into()),
//!         &metrics::STORE_DURATION_BUCKETS,
//!     )?
//!     .set_buckets_for_metric(Matcher::Full(metrics::REPLAY_AGE_SECONDS.into()), &metrics::REPLAY_AGE_BUCKETS)?
//!     .install_recorder()?;
//! let page = move || async move {
//!     metrics::refresh();
//!     recorder.render()
//! };
//! let operations: Router = Router::new().route("/metrics", get(page));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod in_flight;
pub(crate) mod meters;
pub(crate) mod names;
pub(crate) mod scope;
pub(crate) mod series;
pub(crate) mod store;

pub use crate::observe::metrics::meters::refresh;
pub use crate::observe::metrics::names::{
    IN_FLIGHT, LEASE_LOST_TOTAL, MISMATCHES_TOTAL, OLDEST_IN_FLIGHT_SECONDS, REPLAY_AGE_BUCKETS, REPLAY_AGE_SECONDS,
    REQUESTS_TOTAL, STEP_FAILURES_TOTAL, STORE_DURATION_BUCKETS, STORE_DURATION_SECONDS, STORE_ERRORS_TOTAL,
    UNKNOWN_OUTCOMES, WITHOUT_CLIENT,
};
