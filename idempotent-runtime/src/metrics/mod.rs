//! What the runtime does, in numbers: for the recorder that the application has installed with the crate
//! [`metrics`](https://docs.rs/metrics).
//!
//! | metric | kind | labels | what it says |
//! |---|---|---|---|
//! | [`REQUESTS_TOTAL`] | counter | `scope`, `outcome` | guarded requests that have ended, each with one outcome; without a key only those that were refused or ran in a `Tx` |
//! | [`IN_FLIGHT`] | gauge | `scope` | handlers of this process under a claim or in a `Tx`, until they are recorded, released or rolled back |
//! | [`OLDEST_IN_FLIGHT_SECONDS`] | gauge | `scope` | the age of the oldest of them; 0 when there is none |
//! | [`REPLAY_AGE_SECONDS`] | histogram | | how old the records are that are replayed |
//! | [`STORE_DURATION_SECONDS`] | histogram | `store`, `op` | how long each call of a store took, those that failed or were cut off included |
//! | [`STORE_ERRORS_TOTAL`] | counter | `store`, `op` | calls of a store that failed or were cut off |
//! | [`UNKNOWN_OUTCOMES`] | gauge | `scope` | requests in the stores that may have been executed and may not run again, until each is completed or purged |
//! | [`MISMATCHES_TOTAL`] | counter | `scope`, `differs`, `header` | requests that were refused because their key was used for another request |
//! | [`LEASE_LOST_TOTAL`] | counter | `scope` | claims that another process held when their handler ran |
//!
//! No label ever carries anything of a request: each has a bounded number of values, which stand in the program.
//!
//! - **`scope`** is the handler's. The series of all annotated handlers begin at 0 with the first guarded request of the
//!   process.
//! - **`outcome`** is what the span's `idempotency.outcome` says: `recorded`, `not_recorded`, `too_large`, `broken`,
//!   `recording_failed`, `claim_lost`, `panicked`, `failed`, `left_to_handler`, `unguarded`, `replayed`, or the [code](crate::Refusal::code) of a
//!   refusal, that of `not_recorded` as `waited_not_recorded`: the handler did not run. A response that could not be recorded at once is counted so, whatever becomes of it later.
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

mod scope;
mod store;
mod unknown;

use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::SystemTime;

use metrics::{Histogram, Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) use self::scope::InFlight;
use self::scope::Scope;
pub(crate) use self::store::StoreMeter;
pub(crate) use self::unknown::UnknownGauge;
use crate::policies;

/// Counter: guarded requests that have ended.
pub const REQUESTS_TOTAL: &str = "idempotency_requests_total";
/// Gauge: handlers that run under a claim or in a transaction.
pub const IN_FLIGHT: &str = "idempotency_in_flight";
/// Gauge: how long the oldest of them has run.
pub const OLDEST_IN_FLIGHT_SECONDS: &str = "idempotency_oldest_in_flight_seconds";
/// Histogram: how old the records are that are replayed.
pub const REPLAY_AGE_SECONDS: &str = "idempotency_replay_age_seconds";
/// Histogram: how long the calls of stores take.
pub const STORE_DURATION_SECONDS: &str = "idempotency_store_duration_seconds";
/// Counter: calls of stores that failed or were cut off.
pub const STORE_ERRORS_TOTAL: &str = "idempotency_store_errors_total";
/// Gauge: claims of handlers with `after_crash = "refuse"` that were cut off.
pub const UNKNOWN_OUTCOMES: &str = "idempotency_unknown_outcomes";
/// Counter: requests whose key was used for another request.
pub const MISMATCHES_TOTAL: &str = "idempotency_mismatches_total";
/// Counter: claims that were lost while their handler ran.
pub const LEASE_LOST_TOTAL: &str = "idempotency_lease_lost_total";

/// Buckets for [`REPLAY_AGE_SECONDS`]: from a double click to a week.
pub const REPLAY_AGE_BUCKETS: [f64; 9] = [0.1, 1.0, 5.0, 30.0, 300.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0];

/// Buckets for [`STORE_DURATION_SECONDS`]: from memory to the registry's time limit and beyond.
pub const STORE_DURATION_BUCKETS: [f64; 12] =
    [0.000_01, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5];

/// Brings [`OLDEST_IN_FLIGHT_SECONDS`] up to date, and has [`UNKNOWN_OUTCOMES`] counted anew: to be called before the metrics
/// are rendered.
pub fn refresh() {
    unknown::refresh();
    METERS.refresh();
}

// One for the process: several registries may serve handlers of one scope.
static METERS: LazyLock<Meters> = LazyLock::new(Meters::of_all_policies);

struct Meters {
    /// As many as the program has scopes, which live as long as it does.
    scopes: RwLock<HashMap<&'static str, &'static Scope>>,
    replay_age: Histogram,
}

impl Meters {
    fn of_all_policies() -> Self {
        describe();
        let meters = Self { scopes: RwLock::default(), replay_age: metrics::histogram!(REPLAY_AGE_SECONDS) };
        // A counter that appears with its first event shows no increase.
        for policy in policies() {
            meters.scope(policy.scope);
        }
        meters
    }

    fn scope(&self, name: &'static str) -> &'static Scope {
        if let Some(scope) = self.scopes.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return scope;
        }
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        scopes.entry(name).or_insert_with(|| Box::leak(Box::new(Scope::new(name))))
    }

    fn refresh(&self) {
        for scope in self.scopes.read().unwrap_or_else(PoisonError::into_inner).values() {
            scope.refresh();
        }
    }
}

fn describe() {
    describe_counter!(REQUESTS_TOTAL, Unit::Count, "Guarded requests that have ended, by outcome.");
    describe_gauge!(IN_FLIGHT, Unit::Count, "Handlers that run under a claim or in a transaction.");
    describe_gauge!(OLDEST_IN_FLIGHT_SECONDS, Unit::Seconds, "How long the oldest running handler has run.");
    describe_histogram!(REPLAY_AGE_SECONDS, Unit::Seconds, "How old replayed records are.");
    describe_histogram!(STORE_DURATION_SECONDS, Unit::Seconds, "How long the calls of stores take.");
    describe_counter!(STORE_ERRORS_TOTAL, Unit::Count, "Calls of stores that failed or were cut off.");
    describe_gauge!(UNKNOWN_OUTCOMES, Unit::Count, "Requests that may have been executed and may not run again.");
    describe_counter!(
        MISMATCHES_TOTAL,
        Unit::Count,
        "Requests whose key was used for another request, by what differs."
    );
    describe_counter!(LEASE_LOST_TOTAL, Unit::Count, "Claims that were lost while their handler ran.");
}

/// A request has ended so.
pub(crate) fn outcome(scope: &'static str, outcome: &'static str) {
    METERS.scope(scope).count(outcome);
}

/// A key came with another request.
pub(crate) fn mismatched(scope: &'static str, differs: &'static str, header: &str) {
    METERS.scope(scope).mismatched(differs, header);
}

/// Somebody else has the claim of a handler that runs, or nobody.
pub(crate) fn lease_lost(scope: &'static str) {
    METERS.scope(scope).lease_lost();
}

/// A record of this time was sent.
pub(crate) fn replayed(recorded_at: SystemTime) {
    // The process that recorded it may have a clock that is ahead of ours.
    let age = SystemTime::now().duration_since(recorded_at).unwrap_or_default();
    METERS.replay_age.record(age);
}
