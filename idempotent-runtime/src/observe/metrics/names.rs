//! The names of the metrics, and the buckets of the histograms.

/// Counter: guarded requests that have ended.
pub const REQUESTS_TOTAL: &str = "idempotency_requests_total";
/// Gauge: handlers that run under a claim or in a transaction.
pub const IN_FLIGHT: &str = "idempotency_in_flight";
/// Gauge: guarded requests that continue although their clients have disconnected.
pub const WITHOUT_CLIENT: &str = "idempotency_without_client";
/// Gauge: how long the oldest handler in flight has run.
pub const OLDEST_IN_FLIGHT_SECONDS: &str = "idempotency_oldest_in_flight_seconds";
/// Histogram: the age of each record when it is replayed.
pub const REPLAY_AGE_SECONDS: &str = "idempotency_replay_age_seconds";
/// Histogram: how long the calls to stores take.
pub const STORE_DURATION_SECONDS: &str = "idempotency_store_duration_seconds";
/// Counter: calls to stores that failed or exceeded the registry's time limit.
pub const STORE_ERRORS_TOTAL: &str = "idempotency_store_errors_total";
/// Gauge: requests of unknown outcome in the stores, under `after_crash = "reject"`.
pub const UNKNOWN_OUTCOMES: &str = "idempotency_unknown_outcomes";
/// Counter: requests whose key was used for another request.
pub const MISMATCHES_TOTAL: &str = "idempotency_mismatches_total";
/// Counter: steps that have no result.
pub const STEP_FAILURES_TOTAL: &str = "idempotency_step_failures_total";
/// Counter: claims that were lost while their handler ran.
pub const LEASE_LOST_TOTAL: &str = "idempotency_lease_lost_total";

/// Buckets for [`REPLAY_AGE_SECONDS`]: from a double click to a week.
pub const REPLAY_AGE_BUCKETS: [f64; 9] = [0.1, 1.0, 5.0, 30.0, 300.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0];

/// Buckets for [`STORE_DURATION_SECONDS`]: from memory to the registry's time limit and beyond.
pub const STORE_DURATION_BUCKETS: [f64; 12] =
    [0.000_01, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5];
