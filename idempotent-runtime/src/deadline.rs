//! Deadlines for limits of any length: a deadline that the clock cannot represent is never reached.

use std::future::{Future, pending};
use std::time::Duration;

use crate::sync::tokio;
use crate::sync::tokio::time::Instant;

/// A point in time. `None` is a deadline that is never reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NEVER: Self = Self(None);

    pub(crate) fn after(span: Duration) -> Self {
        Self::since(Instant::now(), span)
    }

    pub(crate) fn since(begin: Instant, span: Duration) -> Self {
        Self(begin.checked_add(span))
    }

    pub(crate) fn is_over(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// Resolves when the deadline is reached.
    pub(crate) async fn reached(self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => pending().await,
        }
    }

    /// Returns the output of `call`. Returns `None` if the deadline is reached first.
    pub(crate) async fn bound<T>(self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = call => Some(done),
            () = self.reached() => None,
        }
    }
}
