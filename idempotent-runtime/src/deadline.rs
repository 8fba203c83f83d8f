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
    ///
    /// # Panics
    ///
    /// When it is polled outside of a runtime with timers, as [`sleep`](::tokio::time::sleep) does. It may be polled outside
    /// after it was polled in a runtime that has not ended. No timer would wake a deadline that returned instead.
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
    ///
    /// # Panics
    ///
    /// Like [`reached`](Self::reached), unless `call` is ready.
    pub(crate) async fn bound<T>(self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = call => Some(done),
            () = self.reached() => None,
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().build().expect("a runtime")
    }

    /// Returns a future that was polled on the runtime.
    fn polled_on(runtime: &Runtime, span: Duration) -> BoxFuture<'static, ()> {
        let _entered = runtime.enter();
        let mut reached = Deadline::after(span).reached().boxed();
        assert!(reached.as_mut().now_or_never().is_none());
        reached
    }

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn deadline_is_reached_after_its_runtime_ended() {
        let ended = runtime();
        let reached = polled_on(&ended, SHORT);
        drop(ended);
        runtime().block_on(reached);
    }

    #[test]
    fn deadline_is_reached_although_nothing_drives_its_runtime() {
        let undriven = runtime();
        runtime().block_on(polled_on(&undriven, SHORT));
    }

    #[test]
    fn deadline_of_a_runtime_can_be_polled_outside() {
        let alive = runtime();
        assert!(polled_on(&alive, LONG).now_or_never().is_none());
    }

    #[test]
    fn bound_needs_no_runtime_if_the_call_is_ready() {
        assert_eq!(Deadline(Some(Instant::now())).bound(async { 1 }).now_or_never(), Some(Some(1)));
    }

    #[test]
    #[should_panic(expected = "no reactor running")]
    fn deadline_outside_of_a_runtime_panics() {
        let _ = Deadline::after(LONG).reached().now_or_never();
    }

    #[test]
    #[should_panic(expected = "it is being shutdown")]
    fn deadline_of_an_ended_runtime_panics_outside() {
        let ended = runtime();
        let reached = polled_on(&ended, LONG);
        drop(ended);
        let _ = reached.now_or_never();
    }

    #[test]
    #[should_panic(expected = "timers are disabled")]
    fn deadline_in_a_runtime_without_timers_panics() {
        let alive = runtime();
        let reached = polled_on(&alive, LONG);
        Builder::new_current_thread().build().expect("a runtime").block_on(reached);
    }
}
