//! The meters: one for each scope of the process.

use std::collections::HashMap;
use std::sync::{LazyLock, RwLock};
use std::time::SystemTime;

use ::tokio::sync::watch;

use metrics::{Histogram, Unit, describe_counter, describe_gauge, describe_histogram};

use crate::observe::metrics::names::{
    IN_FLIGHT, LEASE_LOST_TOTAL, MISMATCHES_TOTAL, OLDEST_IN_FLIGHT_SECONDS, REPLAY_AGE_SECONDS, REQUESTS_TOTAL,
    STEP_FAILURES_TOTAL, STORE_DURATION_SECONDS, STORE_ERRORS_TOTAL, UNKNOWN_OUTCOMES, WITHOUT_CLIENT,
};
use crate::observe::metrics::scope::Scope;
use crate::policy::registration::written_policies;
use crate::sync::unpoisoned;

static ASKED_FOR: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));

/// Returns a receiver that changes each time the metrics are about to be read.
pub(crate) fn asked_for() -> watch::Receiver<()> {
    ASKED_FOR.subscribe()
}

// The whole process has one set of meters, because several registries may serve handlers of one scope.
pub(crate) static METERS: LazyLock<Meters> = LazyLock::new(Meters::of_all_policies);

pub(crate) struct Meters {
    /// One entry for each scope of the program. Scopes live as long as the program.
    scopes: RwLock<HashMap<String, &'static Scope>>,
    replay_age: Histogram,
}

impl Meters {
    fn of_all_policies() -> Self {
        describe();
        let meters = Self { scopes: RwLock::default(), replay_age: metrics::histogram!(REPLAY_AGE_SECONDS) };
        // Begin the series at 0: a counter that first appears with its first event shows no increase.
        for policy in written_policies() {
            meters.scope(policy.scope());
        }
        meters
    }

    pub(super) fn scope(&self, name: &str) -> &'static Scope {
        if let Some(scope) = unpoisoned(self.scopes.read()).get(name) {
            return scope;
        }
        let mut scopes = unpoisoned(self.scopes.write());
        scopes.entry(name.to_owned()).or_insert_with(|| {
            let scope = Box::leak(Box::new(Scope::new(name)));
            scope.refresh();
            scope
        })
    }

    fn refresh(&self) {
        for scope in unpoisoned(self.scopes.read()).values() {
            scope.refresh();
        }
    }
}

pub(super) fn describe() {
    describe_counter!(REQUESTS_TOTAL, Unit::Count, "Guarded requests that have ended, by outcome.");
    describe_gauge!(IN_FLIGHT, Unit::Count, "Handlers that run under a claim or in a transaction.");
    describe_gauge!(WITHOUT_CLIENT, Unit::Count, "Requests that continue without their clients.");
    describe_gauge!(OLDEST_IN_FLIGHT_SECONDS, Unit::Seconds, "How long the oldest running handler has run.");
    describe_histogram!(REPLAY_AGE_SECONDS, Unit::Seconds, "How old replayed records are.");
    describe_histogram!(STORE_DURATION_SECONDS, Unit::Seconds, "How long the calls of stores take.");
    describe_counter!(STORE_ERRORS_TOTAL, Unit::Count, "Calls of stores that failed or exceeded `store_timeout`.");
    describe_gauge!(UNKNOWN_OUTCOMES, Unit::Count, "Requests that may have been executed and may not run again.");
    describe_counter!(
        MISMATCHES_TOTAL,
        Unit::Count,
        "Requests whose key was used for another request, by what differs."
    );
    describe_counter!(STEP_FAILURES_TOTAL, Unit::Count, "Steps that have no result, by the rejection.");
    describe_counter!(LEASE_LOST_TOTAL, Unit::Count, "Claims that were lost while their handler ran.");
}

/// Counts a request that ended with this outcome.
pub(crate) fn outcome(scope: &str, outcome: &'static str) {
    METERS.scope(scope).count(outcome);
}

/// Counts a request whose key was used for another request.
pub(crate) fn mismatched(scope: &str, differs: &'static str, header: &str) {
    METERS.scope(scope).mismatched(differs, header);
}

/// Counts a step that has no result.
pub(crate) fn step_failed(scope: &str, outcome: &'static str) {
    METERS.scope(scope).step_failed(outcome);
}

/// Counts a running handler that has lost its claim.
pub(crate) fn lease_lost(scope: &str) {
    METERS.scope(scope).lease_lost();
}

/// Records the age of a replayed record.
pub(crate) fn replayed(recorded_at: SystemTime) {
    // The clock of the process that recorded the response may be ahead of this process's clock.
    let age = SystemTime::now().duration_since(recorded_at).unwrap_or_default();
    METERS.replay_age.record(age);
}

/// Updates [`OLDEST_IN_FLIGHT_SECONDS`], and counts [`UNKNOWN_OUTCOMES`] again. Call this function before you render
/// the metrics.
pub fn refresh() {
    ASKED_FOR.send_replace(());
    METERS.refresh();
}
