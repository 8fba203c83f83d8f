//! What the runtime does, in numbers: for the recorder that the application has installed with the crate
//! [`metrics`](https://docs.rs/metrics).
//!
//! | metric | kind | labels | what it says |
//! |---|---|---|---|
//! | [`REQUESTS_TOTAL`] | counter | `scope`, `outcome` | guarded requests that have ended, each with one outcome; without a key only those that were rejected or ran in a `Tx` |
//! | [`IN_FLIGHT`] | gauge | `scope` | handlers of this process under a claim or in a `Tx`, until they are recorded, released or rolled back |
//! | [`OLDEST_IN_FLIGHT_SECONDS`] | gauge | `scope` | the age of the oldest of them; 0 when there is none |
//! | [`REPLAY_AGE_SECONDS`] | histogram | | how old the records are that are replayed |
//! | [`STORE_DURATION_SECONDS`] | histogram | `store`, `op` | how long each call of a store took, those that failed or were cut off included |
//! | [`STORE_ERRORS_TOTAL`] | counter | `store`, `op` | calls of a store that failed or were cut off |
//! | [`UNKNOWN_OUTCOMES`] | gauge | `scope` | requests in the stores that may have been executed and may not run again, until each is completed or purged |
//! | [`MISMATCHES_TOTAL`] | counter | `scope`, `differs`, `header` | requests that were rejected because their key was used for another request |
//! | [`LEASE_LOST_TOTAL`] | counter | `scope` | claims that another process held when their handler ran |
//!
//! No label ever carries anything of a request: each has a bounded number of values, which stand in the program.
//!
//! - **`scope`** is the handler's. The series of all annotated handlers begin at 0 with the first guarded request of the
//!   process.
//! - **`outcome`** is what the span's `idempotency.outcome` says: `recorded`, `not_recorded`, `too_large`, `broken`,
//!   `recording_failed`, `claim_lost`, `panicked`, `failed`, `left_to_handler`, `unguarded`, `replayed`, or the [code](crate::Rejection::code) of a
//!   rejection, that of `not_recorded` as `waited_not_recorded`: the handler did not run. A response that could not be recorded at once is counted so, whatever becomes of it later.
//! - **`differs`** is the part that was not repeated: `credentials`, `target` or `body`; of several, the first of these.
//!   **`header`** is the name of the one credential header that differs, never its value, and empty otherwise. The names
//!   are those of [`credential_headers`](crate::RegistryBuilder::credential_headers).
//! - **`store`** is the name in the registry; `default` is the one without a name.
//! - **`op`** is `claim`, `renew`, `complete` or `release`, for `MemoryStore` too; of a `Tx` it is `begin`, `claim`,
//!   `record`, `verify` (that the transaction can still be committed), `commit`, `roll_back`, or `look_up` (whether a commit
//!   whose answer was lost took place). A `commit` also fails when a deferred constraint of the handler's own is violated.
//!   A request that waits for another one looks by `get`; so does the inspector, which also asks for `purge`. `count` is asked
//!   for [`UNKNOWN_OUTCOMES`].
//!
//! The age of the oldest handler is brought up to date when one begins or ends, every five seconds while one runs, and by
//! [`refresh`]. It counts from the claim, so that a `Tx`, which has no lease, is seen as any other handler.
//!
//! **Unknown outcomes** are counted in the stores, whichever process left them: every process that uses a store reports the same number,
//! so take the `max` over processes, not the `sum`. They are counted five seconds after a registry is built, every 15 seconds,
//! and when [`refresh`] is called, for the scrape after that one; at most 10,000 in each store. A registry that is built outside
//! of a runtime begins with its first guarded request. A store that cannot be asked leaves the number as it was. Scopes of other
//! programs that use the store are counted too.
//!
//! Install the recorder before the first guarded request: what was asked for without one stays without one.
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
pub(crate) mod store;

pub use crate::observe::metrics::meters::refresh;
pub use crate::observe::metrics::names::{
    IN_FLIGHT, LEASE_LOST_TOTAL, MISMATCHES_TOTAL, OLDEST_IN_FLIGHT_SECONDS, REPLAY_AGE_BUCKETS, REPLAY_AGE_SECONDS,
    REQUESTS_TOTAL, STORE_DURATION_BUCKETS, STORE_DURATION_SECONDS, STORE_ERRORS_TOTAL, UNKNOWN_OUTCOMES,
};
