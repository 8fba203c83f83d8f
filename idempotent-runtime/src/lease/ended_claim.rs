//! When a claim has ended, and how long the steps of its handler live after that.

use std::time::Duration;

use crate::sync::tokio::time::Instant;

/// The lifetime of a step that should have expired: not zero, which is no lifetime for some stores.
const SHORTEST_LIFE: Duration = Duration::from_millis(1);

/// With less than this left, the next call would come too late.
const SHORTEST_LEFT: Duration = Duration::from_millis(20);

/// Stores count in milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// The end of a claim whose handler has taken steps.
#[derive(Clone, Copy)]
pub(super) struct EndedClaim {
    /// Not later than the moment from which the store counts the ttl of the record.
    since: Instant,
    pub(super) ttl: Duration,
    has_record: bool,
}

impl EndedClaim {
    /// A claim that has just ended: with a record that was sent then, or without one.
    pub(super) fn new(record_sent_at: Option<Instant>, ttl: Duration) -> Self {
        match record_sent_at {
            Some(sent_at) => Self::with_record(sent_at, ttl),
            None => Self { since: Instant::now(), ttl, has_record: false },
        }
    }

    /// A claim that has ended with a record, which lives for `ttl` from `since` or longer.
    pub(super) fn with_record(since: Instant, ttl: Duration) -> Self {
        Self { since, ttl, has_record: true }
    }

    /// How long a step lives from now on. A retry gets the record while there is one, so a step may expire earlier than the
    /// record, and must not expire later: the next execution would find it. So the store may apply this lifetime later,
    /// by the time that one call may take, or by half of what is left.
    pub(super) fn life_of_step(&self, limit: Duration) -> Duration {
        let left = self.ttl.saturating_sub(self.since.elapsed());
        let reserve = if self.has_record { limit.min(left / 2) } else { Duration::ZERO };
        if left > SHORTEST_LEFT { left.saturating_sub(reserve) } else { SHORTEST_LIFE }
    }

    /// Whether a step may expire later than the record, if the store has given it this lifetime by now.
    pub(super) fn is_outlived_by(&self, life: Duration) -> bool {
        let since_end = self.since.elapsed().saturating_add(life).saturating_add(ROUNDING);
        self.has_record && life > SHORTEST_LIFE && since_end > self.ttl
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// For each part of the ttl that may have passed, and each limit of a call; in milliseconds.
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
