//! When a claim has ended, and how long the steps of its handler live after that.

use std::time::Duration;

use crate::sync::tokio::time::Instant;

/// The lifetime of a step that should already have expired. It is not zero, because some stores do not accept zero as a
/// lifetime.
const SHORTEST_LIFE: Duration = Duration::from_millis(1);

/// If less time than this is left, the next call to the store would come too late.
const SHORTEST_LEFT: Duration = Duration::from_millis(20);

/// The rounding of lifetimes: stores count in milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// The end of a claim whose handler has taken steps.
#[derive(Clone, Copy)]
pub(super) struct EndedClaim {
    /// The end of the claim. Not later than the moment from which the store counts the ttl of the record.
    since: Instant,
    pub(super) ttl: Duration,
    has_record: bool,
}

impl EndedClaim {
    /// Creates the end of a claim that has ended with a record that was first sent at `record_sent_at`, or has just
    /// ended without a record.
    pub(super) fn new(record_sent_at: Option<Instant>, ttl: Duration) -> Self {
        match record_sent_at {
            Some(sent_at) => Self::with_record(sent_at, ttl),
            None => Self { since: Instant::now(), ttl, has_record: false },
        }
    }

    /// Creates the end of a claim with a record. The record lives for `ttl` from `since`, or longer.
    pub(super) fn with_record(since: Instant, ttl: Duration) -> Self {
        Self { since, ttl, has_record: true }
    }

    /// Returns how long a step lives from now on. A step may expire earlier than the record, because a retry gets the
    /// record while the record exists. A step must not expire later than the record, because the next execution would
    /// get the step's result. The store may apply the lifetime with a delay, so the lifetime before a record's end is
    /// shorter by the time that one call may take, or by half of the remaining time if that is less.
    pub(super) fn life_of_step(&self, limit: Duration) -> Duration {
        let left = self.ttl.saturating_sub(self.since.elapsed());
        let reserve = if self.has_record { limit.min(left / 2) } else { Duration::ZERO };
        if left > SHORTEST_LEFT { left.saturating_sub(reserve) } else { SHORTEST_LIFE }
    }

    /// Returns whether a step may expire later than the record, if the store has applied this lifetime by now.
    pub(super) fn is_outlived_by(&self, life: Duration) -> bool {
        let since_end = self.since.elapsed().saturating_add(life).saturating_add(ROUNDING);
        self.has_record && life > SHORTEST_LIFE && since_end > self.ttl
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// Each pair is the part of the ttl that has passed and the limit of one call, both in milliseconds.
    #[test]
    fn lifetime_of_a_step_ends_before_its_record() {
        let ttl = Duration::from_secs(1);
        for (passed, limit) in [(0, 100), (500, 100), (950, 100), (1000, 100), (1500, 100), (0, 5000), (700, 5000)] {
            let since = Instant::now().checked_sub(Duration::from_millis(passed)).expect("the machine runs for longer");
            let ended = EndedClaim::with_record(since, ttl);
            let life = ended.life_of_step(Duration::from_millis(limit));
            assert!(life >= SHORTEST_LIFE, "{passed} {limit}");
            assert!(!ended.is_outlived_by(life), "{passed} {limit}: {life:?}");
        }
    }

    #[test]
    fn step_of_a_claim_without_a_record_keeps_the_whole_ttl() {
        let ended = EndedClaim::new(None, Duration::from_secs(60));
        assert!(ended.life_of_step(Duration::from_secs(2)) > Duration::from_secs(59));
        assert!(!ended.is_outlived_by(Duration::from_secs(61)));
    }
}
