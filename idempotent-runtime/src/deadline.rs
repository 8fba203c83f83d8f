//! Deadlines for limits of any length: a deadline that the clock cannot represent is never reached.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::time::Duration;

use crate::sync::tokio::time::Instant;
use crate::sync::{current_runtime, tokio};

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

    /// Resolves when the deadline is reached. The future may be polled on one runtime after another: a timer of a runtime
    /// that has ended panics, and one of a runtime that is not driven never wakes.
    pub(crate) async fn reached(self) {
        let Some(at) = self.0 else { return pending().await };
        let (mut runtime, mut timer) = (current_runtime(), pin!(tokio::time::sleep_until(at)));
        poll_fn(|cx| {
            let current = current_runtime();
            if current.is_some() && current != runtime {
                runtime = current;
                timer.set(tokio::time::sleep_until(at));
            }
            timer.as_mut().poll(cx)
        })
        .await;
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
