//! The meters of one scope.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};

use crate::background_task::BackgroundTask;
use crate::observe::metrics::names::{
    IN_FLIGHT, LEASE_LOST_TOTAL, MISMATCHES_TOTAL, OLDEST_IN_FLIGHT_SECONDS, REQUESTS_TOTAL, STEP_FAILURES_TOTAL,
    WITHOUT_CLIENT,
};
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// The longest time between two updates of the age of the oldest handler.
const RESOLUTION: Duration = Duration::from_secs(5);

/// The outcomes whose series begin at 0, the frequent ones first. The series of any other outcome begins with its first
/// request.
const OUTCOMES: [&str; 22] = [
    "recorded",
    "replayed",
    "not_recorded",
    "in_flight",
    "waited_not_recorded",
    "key_reused",
    "other_credentials",
    "missing_key",
    "invalid_key",
    "store_unavailable",
    "too_many_in_flight",
    "unguarded",
    "outcome_unknown",
    "claim_lost",
    "response_not_recorded",
    "transaction_conflict",
    "transaction_failed",
    "fingerprint_failed",
    "too_large",
    "broken",
    "recording_failed",
    "panicked",
];

/// Every code that the rejection of a step may have.
const OUTCOMES_OF_STEPS: [&str; 7] = [
    "store_unavailable",
    "claim_lost",
    "in_flight",
    "key_reused",
    "other_credentials",
    "outcome_unknown",
    "step_failed",
];

pub(super) struct Scope {
    name: String,
    outcomes: [(&'static str, Counter); OUTCOMES.len()],
    lost: Counter,
    in_flight: Gauge,
    oldest: Gauge,
    without_client: Gauge,
    running: Mutex<BegunHandlers>,
    /// Updates the age of the oldest handler while a handler runs.
    task: BackgroundTask,
}

#[derive(Default)]
struct BegunHandlers {
    /// When each running handler began, by its number. The first entry is the oldest.
    begun: BTreeMap<u64, Instant>,
    next_number: u64,
}

impl Scope {
    pub(super) fn new(name: &str) -> Self {
        let scope = Self {
            name: name.to_owned(),
            outcomes: OUTCOMES.map(|outcome| (outcome, requests(name, outcome))),
            lost: counter!(LEASE_LOST_TOTAL, "scope" => name.to_owned()),
            in_flight: gauge!(IN_FLIGHT, "scope" => name.to_owned()),
            oldest: gauge!(OLDEST_IN_FLIGHT_SECONDS, "scope" => name.to_owned()),
            without_client: gauge!(WITHOUT_CLIENT, "scope" => name.to_owned()),
            running: Mutex::default(),
            task: BackgroundTask::default(),
        };
        // A counter that first appears with its first event shows no increase. The credential headers are not known
        // here.
        for differs in ["credentials", "target", "body"] {
            mismatches(name, differs, "").increment(0);
        }
        for outcome in OUTCOMES_OF_STEPS {
            step_failures(name, outcome).increment(0);
        }
        scope
    }

    pub(super) fn count(&self, outcome: &'static str) {
        match self.outcomes.iter().find(|(name, _)| *name == outcome) {
            Some((_, requests)) => requests.increment(1),
            None => requests(&self.name, outcome).increment(1),
        }
    }

    pub(super) fn mismatched(&self, differs: &'static str, header: &str) {
        mismatches(&self.name, differs, header).increment(1);
    }

    pub(super) fn step_failed(&self, outcome: &'static str) {
        step_failures(&self.name, outcome).increment(1);
    }

    pub(super) fn lease_lost(&self) {
        self.lost.increment(1);
    }

    pub(super) fn client_left(&self) {
        self.without_client.increment(1.0);
    }

    pub(super) fn end_without_client(&self) {
        self.without_client.decrement(1.0);
    }

    pub(super) fn refresh(&self) {
        self.show(&lock(&self.running));
    }

    /// Counts a handler that begins, and returns its number.
    pub(super) fn begin(&'static self) -> u64 {
        let mut running = lock(&self.running);
        let number = running.next_number;
        running.next_number += 1;
        running.begun.insert(number, Instant::now());
        self.show(&running);
        self.task.ensure(|| self.keep_up());
        number
    }

    pub(super) fn end(&self, number: u64) {
        let mut running = lock(&self.running);
        running.begun.remove(&number);
        self.show(&running);
    }

    async fn keep_up(&self) {
        loop {
            tokio::time::sleep(RESOLUTION).await;
            let running = lock(&self.running);
            if running.begun.is_empty() {
                // The lock is held: the next handler finds no task and spawns one.
                self.task.has_ended();
                return;
            }
            self.show(&running);
        }
    }

    /// Updates the gauges. The caller must hold the lock. Otherwise an older value could overwrite a newer one.
    #[expect(clippy::cast_precision_loss, reason = "no process runs 2^52 handlers")]
    fn show(&self, running: &BegunHandlers) {
        self.in_flight.set(running.begun.len() as f64);
        self.oldest.set(running.begun.first_key_value().map_or(Duration::ZERO, |(_, begun)| begun.elapsed()));
    }
}

fn requests(scope: &str, outcome: &'static str) -> Counter {
    counter!(REQUESTS_TOTAL, "scope" => scope.to_owned(), "outcome" => outcome)
}

fn step_failures(scope: &str, outcome: &'static str) -> Counter {
    counter!(STEP_FAILURES_TOTAL, "scope" => scope.to_owned(), "outcome" => outcome)
}

fn mismatches(scope: &str, differs: &'static str, header: &str) -> Counter {
    counter!(MISMATCHES_TOTAL, "scope" => scope.to_owned(), "differs" => differs, "header" => header.to_owned())
}
