//! When a limit is over. The only place that adds a span to a clock: one that no clock reaches is never over.

use std::future::{Future, pending};
use std::time::Duration;

use crate::sync::tokio;
use crate::sync::tokio::time::Instant;

/// A point in time; `None` is never.
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

    /// Whether it is not over yet when `span` is.
    pub(crate) fn outlasts(self, span: Duration) -> bool {
        self.0.is_none_or(|at| Instant::now().checked_add(span).is_some_and(|then| then < at))
    }

    /// Resolves when it is over.
    pub(crate) async fn reached(self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => pending().await,
        }
    }

    /// What `call` comes to; `None` when it is over before that.
    pub(crate) async fn bound<T>(self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = call => Some(done),
            () = self.reached() => None,
        }
    }
}
