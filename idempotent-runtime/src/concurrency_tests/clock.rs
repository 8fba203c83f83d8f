//! A clock that advances only when a test advances it.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Add;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

// All threads and tasks of one execution run on one thread of the operating system.
thread_local! {
    static CLOCK: RefCell<Clock> = RefCell::default();
}

#[derive(Default)]
struct Clock {
    now: Duration,
    sleepers: Vec<(Instant, Waker)>,
}

/// Resets the clock for the next execution.
pub(super) fn reset() {
    CLOCK.take();
}

/// Advances the time, and wakes all that have slept until then.
pub(super) fn advance(by: Duration) {
    let woken: Vec<_> = CLOCK.with_borrow_mut(|clock| {
        clock.now += by;
        let now = Instant(clock.now);
        clock.sleepers.extract_if(.., |(until, _)| *until <= now).collect()
    });
    for (_, waker) in woken {
        waker.wake();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(CLOCK.with_borrow(|clock| clock.now))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    pub(crate) fn checked_add(self, span: Duration) -> Option<Self> {
        self.0.checked_add(span).map(Self)
    }

    pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

pub(crate) struct Sleep(Instant);

pub(crate) fn sleep(duration: Duration) -> Sleep {
    Sleep(Instant::now() + duration)
}

pub(crate) fn sleep_until(until: Instant) -> Sleep {
    Sleep(until)
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.0 {
            return Poll::Ready(());
        }
        CLOCK.with_borrow_mut(|clock| clock.sleepers.push((self.0, cx.waker().clone())));
        Poll::Pending
    }
}
