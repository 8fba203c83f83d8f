//! The calls that wait for a store: which of them were sent, and whether those that wait can be served in time.
//!
//! A store tells when a call begins to wait for a connection or a place in a queue ([`Call::hold_back`]), and when it goes out
//! ([`Call::send`]). One that is withdrawn before that has no effect, and never will: nothing has to be given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// A store that says nothing: the call may have been sent at any time.
const UNKNOWN: u8 = 0;
const HELD_BACK: u8 = 1;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
const SENT: u8 = 2;
const WITHDRAWN: u8 = 3;

tokio::task_local! {
    static CURRENT: Arc<Call>;
}

/// One call of a store.
pub(crate) struct Call {
    state: AtomicU8,
    line: Arc<Line>,
}

impl Call {
    pub(super) fn of(line: &Arc<Line>) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(UNKNOWN), line: Arc::clone(line) })
    }

    /// Runs the call as the one that its store finds.
    pub(super) async fn scope<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        CURRENT.scope(self, call).await
    }

    /// The call that waits from here on; one of its own where the store is not asked through a registry.
    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(super) fn hold_back() -> Arc<Self> {
        let call = CURRENT.try_with(Arc::clone).unwrap_or_else(|_| Self::of(&Arc::default()));
        if call.changes(UNKNOWN, HELD_BACK) {
            call.line.held_back.fetch_add(1, Ordering::Relaxed);
        }
        call
    }

    /// It goes out; false when its caller has withdrawn it.
    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(super) fn send(&self) -> bool {
        if self.changes(HELD_BACK, SENT) {
            self.line.left(true);
        }
        self.state.load(Ordering::SeqCst) != WITHDRAWN
    }

    /// It must not go out any more; false when it may have.
    pub(super) fn withdraw(&self) -> bool {
        let is_withdrawn = self.changes(HELD_BACK, WITHDRAWN);
        if is_withdrawn {
            self.line.left(false);
        }
        is_withdrawn
    }

    fn changes(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// The calls of one store that are held back, and how fast it takes them.
#[derive(Default)]
pub(crate) struct Line {
    held_back: AtomicUsize,
    sent: AtomicUsize,
    pace: Mutex<Pace>,
}

#[derive(Default)]
struct Pace {
    /// The time that passes between two calls that go out, as long as others wait.
    of_one: Option<Duration>,
    /// Since when others wait all the time, and how many have gone out by then.
    window: Option<(Instant, u32)>,
}

/// Long enough that a store which takes many calls at once has taken some, and that some have gone out at all: a burst keeps
/// the processors busy at first, which says nothing of the store.
const WINDOW: Duration = Duration::from_millis(50);
const ENOUGH: u32 = 16;
const LONG_WINDOW: Duration = Duration::from_millis(250);

impl Line {
    /// How many have gone out.
    pub(super) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn held_back(&self) -> usize {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Whether `ahead` calls will not have gone out within `limit`, not even at twice the pace that was seen.
    pub(super) fn is_too_long(&self, ahead: usize, limit: Duration) -> bool {
        let Some(of_one) = lock(&self.pace).of_one else { return false };
        of_one.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX)) / 2 > limit
    }

    fn left(&self, was_sent: bool) {
        let others = self.held_back.fetch_sub(1, Ordering::Relaxed) - 1;
        if !was_sent {
            return;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        let mut pace = lock(&self.pace);
        if others == 0 {
            pace.window = None;
            return;
        }
        let now = Instant::now();
        let (begun, count) = pace.window.get_or_insert((now, 0));
        let passed = now.saturating_duration_since(*begun);
        *count += 1;
        if passed < WINDOW || *count < ENOUGH && passed < LONG_WINDOW {
            return;
        }
        let seen = passed / *count;
        // What it was able to do counts more than what it does now: who is refused by mistake gets nothing.
        pace.of_one = Some(pace.of_one.map_or(seen, |before| seen.min((before * 7 + seen) / 8)));
        pace.window = Some((now, 0));
    }
}

/// Withdraws the call when it is dropped, as far as that is still possible.
pub(super) struct Withdrawn<'a>(pub(super) &'a Call);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}
