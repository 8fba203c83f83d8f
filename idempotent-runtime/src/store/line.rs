//! The calls that wait for a store: which of them were sent, and whether those that wait can be served in time.
//!
//! A store tells when a call begins to wait for a connection or a place in a queue ([`Call::hold_back`]), and when it goes out
//! ([`Call::send`]). One that is withdrawn before that has no effect, and never will: nothing has to be given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// The store reports nothing: the call may have been sent at any time.
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
    line: Arc<WaitingLine>,
}

impl Call {
    pub(super) fn of(line: &Arc<WaitingLine>) -> Arc<Self> {
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

    /// The call that this task makes for a registry.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// How long it may take.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn limit(&self) -> Duration {
        self.line.limit
    }

    /// Whether the server has answered a call since then, or shortly before.
    #[cfg(feature = "postgres")]
    pub(super) fn is_server_alive(&self, since: Instant) -> bool {
        self.line.is_moving(since)
    }

    /// The server has answered, if not this call: it lives.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn server_lives(&self) {
        self.line.answered();
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
pub(crate) struct WaitingLine {
    limit: Duration,
    held_back: AtomicUsize,
    sent: AtomicUsize,
    /// While calls wait, and for a while after some have waited in vain.
    pace: Mutex<Option<Pace>>,
    /// When the store last answered a call.
    answered_at: Mutex<Option<Instant>>,
}

impl WaitingLine {
    pub(super) fn with_limit(limit: Duration) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The store has answered a call.
    pub(super) fn answered(&self) {
        *lock(&self.answered_at) = Some(Instant::now());
    }

    /// How long one of its calls may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether the store has answered a call while one waits that began then, or for as long as one may take.
    pub(super) fn is_moving(&self, begun: Instant) -> bool {
        // A process that was paused sees an answer later than it came.
        let is_recent = |answered_at: Instant| answered_at >= begun || answered_at.elapsed() < self.limit;
        lock(&self.answered_at).is_some_and(is_recent)
    }

    /// How many have gone out.
    pub(super) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn held_back(&self) -> usize {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Whether `ahead` calls will surely not have gone out within this time.
    pub(super) fn is_too_long(&self, ahead: usize, within: Duration) -> bool {
        if ahead == 0 {
            return false;
        }
        let of_one = lock(&self.pace).as_ref().and_then(|pace| pace.of_one(self.limit));
        of_one.is_some_and(|of_one| of_one.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX)) / FASTER > within)
    }

    fn left(&self, was_sent: bool) {
        let others = self.held_back.fetch_sub(1, Ordering::Relaxed) - 1;
        let mut pace = lock(&self.pace);
        if !was_sent {
            if let Some(pace) = &mut *pace {
                pace.was_too_slow = true;
            }
            return;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        if others == 0 {
            // The store has taken all that came: how long it took says nothing of what comes later.
            pace.take_if(|pace| !pace.was_too_slow);
            return;
        }
        let now = Instant::now();
        let recent = pace.take().filter(|pace| pace.is_recent(now, self.limit));
        pace.insert(recent.unwrap_or_else(|| Pace::new(now, others))).count(now, others, self.limit);
    }
}

/// The pace of a line that never was empty, in windows of time: the time from one sent call to the next.
///
/// The beginning of a burst proves nothing, because connections are opened and requests accepted then. So windows count from
/// half of the limit on, and the best window decides, not the mean.
struct Pace {
    waits_since: Instant,
    last_sent: Instant,
    /// Since when, how many have gone out, and how many waited at its beginning.
    window: (Instant, u32, usize),
    windows: u32,
    /// The best window of a time as long as the limit, and the one before that.
    best: Option<Duration>,
    best_before: Option<Duration>,
    begun: Instant,
    /// A call has waited in vain.
    was_too_slow: bool,
}

/// Long enough that a store which takes many calls at once has taken some.
const WINDOW: Duration = Duration::from_millis(50);
const CALLS_IN_WINDOW: u32 = 4;
const LEAST_WINDOWS: u32 = 2;

/// How much faster than in its best window a store may become, before a call was turned away that it could have served.
const FASTER: u32 = 4;

impl Pace {
    fn new(now: Instant, others: usize) -> Self {
        Self {
            waits_since: now,
            last_sent: now,
            window: (now, 0, others),
            windows: 0,
            best: None,
            best_before: None,
            begun: now,
            was_too_slow: false,
        }
    }

    fn is_recent(&self, now: Instant, limit: Duration) -> bool {
        now.saturating_duration_since(self.last_sent) <= limit
    }

    /// Another call goes out while others wait.
    fn count(&mut self, now: Instant, others: usize, limit: Duration) {
        self.last_sent = now;
        let (begun, count, others_before) = &mut self.window;
        *count += 1;
        let passed = now.saturating_duration_since(*begun);
        if passed < WINDOW || *count < CALLS_IN_WINDOW {
            return;
        }
        let (seen, has_grown) = (passed / *count, others > *others_before);
        self.window = (now, 0, others);
        if has_grown {
            // The processors were busy with those that came.
            return;
        }
        if now.saturating_duration_since(self.begun) > limit {
            (self.best_before, self.best, self.begun) = (self.best.take(), None, now);
        }
        self.best = Some(self.best.map_or(seen, |best| best.min(seen)));
        self.windows = self.windows.saturating_add(1);
    }

    /// The time that passes between two calls at best, if that is known.
    fn of_one(&self, limit: Duration) -> Option<Duration> {
        let now = Instant::now();
        let is_known = self.windows >= LEAST_WINDOWS
            && now.saturating_duration_since(self.waits_since) >= limit / 2
            && self.is_recent(now, limit);
        if !is_known {
            return None;
        }
        self.best.into_iter().chain(self.best_before).min()
    }
}

/// Withdraws the call when it is dropped, as far as that is still possible.
pub(super) struct Withdrawn<'a>(pub(super) &'a Call);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}
