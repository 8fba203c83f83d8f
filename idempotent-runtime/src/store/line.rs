//! The calls that wait for a store: which of them were sent, and whether the store can serve the waiting ones in time.
//!
//! A store reports when a call begins to wait for a connection or a place in a queue ([`Call::hold_back`]), and when it
//! sends the call ([`Call::send`]). A call that is withdrawn before that never has an effect, so nothing has to be
//! given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// The store has reported nothing, so the call may have been sent at any time.
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

    /// Runs `call` in a task scope in which its store finds this [`Call`].
    pub(super) async fn scope<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        CURRENT.scope(self, call).await
    }

    /// Marks the current call as waiting and returns it. Returns a new call if the store is not called through a
    /// registry.
    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(super) fn hold_back() -> Arc<Self> {
        let call = CURRENT.try_with(Arc::clone).unwrap_or_else(|_| Self::of(&Arc::default()));
        call.wait();
        call
    }

    /// Marks the current call as waiting and returns it, if the store is called through a registry.
    #[cfg(feature = "redis")]
    pub(super) fn hold_back_current() -> Option<Arc<Self>> {
        Self::current().inspect(|call| call.wait())
    }

    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    fn wait(&self) {
        if self.changes(UNKNOWN, HELD_BACK) {
            self.line.held_back.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the call that this task makes for a registry.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Returns the time that the call may take.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn limit(&self) -> Duration {
        self.line.limit
    }

    /// Returns whether the server has answered a call since then, or within the limit of one call.
    #[cfg(feature = "postgres")]
    pub(super) fn is_server_alive(&self, since: Instant) -> bool {
        self.line.is_moving(since)
    }

    /// Records that the server is alive: it has answered, even if not to this call.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn server_lives(&self) {
        self.line.answered();
    }

    /// Marks the call as sent. Returns false if its caller has withdrawn it.
    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(super) fn send(&self) -> bool {
        if self.changes(HELD_BACK, SENT) {
            self.line.left(true);
        }
        self.state.load(Ordering::SeqCst) != WITHDRAWN
    }

    /// Withdraws the call, so that it is not sent any more. Returns false if it may have been sent.
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

/// The waiting calls of one store, and the pace at which the store takes them.
#[derive(Default)]
pub(crate) struct WaitingLine {
    limit: Duration,
    held_back: AtomicUsize,
    sent: AtomicUsize,
    /// The pace of the line while calls wait, and for a while after a waiting call was withdrawn.
    pace: Mutex<Option<Pace>>,
    /// The time at which the store last answered a call.
    answered_at: Mutex<Option<Instant>>,
}

impl WaitingLine {
    pub(super) fn with_limit(limit: Duration) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Records that the store has answered a call.
    pub(super) fn answered(&self) {
        *lock(&self.answered_at) = Some(Instant::now());
    }

    /// Returns the time that one call may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns whether the store has answered a call since `begun`, or within the limit of one call.
    pub(super) fn is_moving(&self, begun: Instant) -> bool {
        // A paused process notices an answer later than it arrived.
        let is_recent = |answered_at: Instant| answered_at >= begun || answered_at.elapsed() < self.limit;
        lock(&self.answered_at).is_some_and(is_recent)
    }

    /// Returns the number of calls that were sent.
    pub(super) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn held_back(&self) -> usize {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Returns whether it is certain that `ahead` calls will not all be sent within this time.
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
            // The store has taken all calls, so the time that it took says nothing about later calls.
            pace.take_if(|pace| !pace.was_too_slow);
            return;
        }
        let now = Instant::now();
        let recent = pace.take().filter(|pace| pace.is_recent(now, self.limit));
        pace.insert(recent.unwrap_or_else(|| Pace::new(now, others))).count(now, others, self.limit);
    }
}

/// The pace of a line that was never empty: the time from one sent call to the next, in windows of time.
///
/// The beginning of a burst proves nothing, because connections are opened and requests accepted then. So the pace is
/// known only after half of the limit, a window in which the line grew does not count, and the best window decides, not
/// the mean.
struct Pace {
    waits_since: Instant,
    last_sent: Instant,
    /// The start of the window, the number of calls sent in it, and the number that waited at its start.
    window: (Instant, u32, usize),
    windows: u32,
    /// The best window in a period as long as the limit. `best_before` is the best one of the period before.
    best: Option<Duration>,
    best_before: Option<Duration>,
    begun: Instant,
    /// Whether a waiting call was withdrawn.
    was_too_slow: bool,
}

/// A window lasts at least this long, and at least a quarter of the limit: a store that takes many calls at once, such as 32 in
/// one statement, takes none for a while after that.
const WINDOW: Duration = Duration::from_millis(50);
const CALLS_IN_WINDOW: u32 = 4;
const LEAST_WINDOWS: u32 = 2;

/// The factor by which a store may become faster than in its best window, before a call is rejected that it could have
/// served.
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

    /// Counts a call that is sent while others wait.
    fn count(&mut self, now: Instant, others: usize, limit: Duration) {
        self.last_sent = now;
        let (begun, count, others_before) = &mut self.window;
        *count += 1;
        let passed = now.saturating_duration_since(*begun);
        if passed < WINDOW.max(limit / 4) || *count < CALLS_IN_WINDOW {
            return;
        }
        let (seen, has_grown) = (passed / *count, others > *others_before);
        self.window = (now, 0, others);
        if has_grown {
            // The processors were busy with the calls that arrived.
            return;
        }
        if now.saturating_duration_since(self.begun) > limit {
            (self.best_before, self.best, self.begun) = (self.best.take(), None, now);
        }
        self.best = Some(self.best.map_or(seen, |best| best.min(seen)));
        self.windows = self.windows.saturating_add(1);
    }

    /// Returns the shortest time between two calls, if it is known.
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

/// A guard that withdraws the call when it is dropped, if that is still possible.
pub(super) struct Withdrawn<'a>(pub(super) &'a Call);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}
