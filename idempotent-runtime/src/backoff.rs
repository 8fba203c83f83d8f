//! The pauses between the tries of a call.

use std::time::Duration;

use crate::sync::tokio;

/// A pause that doubles each time, up to a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// The pauses between two checks of a claim that another request holds.
    pub(crate) const BETWEEN_CHECKS: Self = Self::new(Duration::from_millis(5), Duration::from_millis(250));

    /// The pauses between two tries to write data that must not be lost.
    pub(crate) const OF_A_RECORD: Self = Self::new(Duration::from_millis(50), Duration::from_secs(1));

    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// Returns the pause before the next try, and doubles the one after it.
    pub(crate) fn advance(&mut self) -> Duration {
        let pause = self.next;
        self.next = self.longest.min(pause * 2);
        pause
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.advance()).await;
    }
}
