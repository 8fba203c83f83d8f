//! Repeats a call until a deadline.

use std::mem;

use crate::backoff::Backoff;
use crate::deadline::Deadline;

/// The pauses before the tries that follow a failed try. The last try begins at the deadline at the latest.
#[derive(Debug)]
pub(crate) struct Retries {
    backoff: Backoff,
    deadline: Deadline,
    is_owed_one: bool,
}

impl Retries {
    pub(crate) fn until(deadline: Deadline, backoff: Backoff) -> Self {
        Self { backoff, deadline, is_owed_one: false }
    }

    /// Grants one try after the first one, even if the first one lasted beyond the deadline.
    pub(crate) fn at_least_one(self) -> Self {
        Self { is_owed_one: true, ..self }
    }

    /// Continues until another deadline. The pauses continue to grow.
    #[cfg(feature = "postgres")]
    pub(crate) fn extend(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Pauses until the next try. Returns `false` at once if the deadline has passed: then the caller must give up.
    ///
    /// This method is cancel safe, but a cancelled pause counts: the next pause is longer.
    pub(crate) async fn pause(&mut self) -> bool {
        if mem::take(&mut self.is_owed_one) {
            self.backoff.wait().await;
            return true;
        }
        if self.deadline.is_over() {
            return false;
        }
        // A pause that the deadline cuts off is followed by the last try.
        let _ = self.deadline.bound(self.backoff.wait()).await;
        true
    }
}
