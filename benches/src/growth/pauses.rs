//! The longest time that one claim takes, while records expire and while none do.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use idempotent_runtime::store::{Claim, Held, MemoryStore, Store};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::records::{immediate, numbered};
use crate::engines::sample::request;

/// How often a part of the records expires at once. After each of these waves, nothing expires for a while.
pub(super) const WAVES: usize = 5;

/// Shorter than a wave of many records, so quiet times count too few disturbances by the machine.
const LONGEST_QUIET: Duration = Duration::from_secs(2);

/// The first number of keys that only this measurement claims.
const CLAIMED: usize = 1 << 41;

/// The longest claim, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Longest {
    /// The elapsed time.
    pub(super) wall: f64,
    /// The elapsed time without two waits for a processor: that of this thread, and that of the other thread that
    /// waited longest and may have held the lock. Other programs need processors too.
    pub(super) own: f64,
}

/// The results, one for each wave.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Pauses {
    pub(super) expiring: Vec<Longest>,
    pub(super) quiet: Vec<Longest>,
    /// How many seconds the store took to free each wave.
    pub(super) freed_in: Vec<f64>,
}

/// When the records of each wave expire.
pub(super) struct Tide {
    first: Instant,
    every: Duration,
}

impl Tide {
    /// The times for `size` records, if entering and reading each of them takes `pace`.
    pub(super) fn new(size: usize, pace: Duration) -> Self {
        let records = u32::try_from(size).expect("it fits");
        let a_wave = records / u32::try_from(WAVES).expect("it fits");
        let first = Instant::now() + pace * records + Duration::from_millis(1_500);
        Self { first, every: Duration::from_millis(500) + pace * a_wave }
    }

    /// How long the record with this number lives from now on.
    pub(super) fn ttl(&self, number: usize) -> Duration {
        self.of(number % WAVES).saturating_duration_since(Instant::now())
    }

    fn of(&self, wave: usize) -> Instant {
        self.first + self.every * u32::try_from(wave).expect("it fits")
    }

    /// Whether the store still contains all records with which it was filled.
    pub(super) fn is_to_come(&self) -> bool {
        Instant::now() < self.first
    }
}

/// Claims fresh keys all the time, on a separate thread. Returns the longest claim of each wave and of each quiet time.
pub(super) async fn measure(store: &MemoryStore, tide: &Tide) -> Pauses {
    let filled = store.used_bytes();
    let window = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let runtime = Handle::current();
    let mut freed_in = Vec::new();
    // Window 0 belongs to no wave, the odd ones are waves, the even ones are the quiet times after them.
    let longest = std::thread::scope(|scope| {
        let claimant = scope.spawn(|| {
            let _entered = runtime.enter();
            claim_until(store, &window, &is_over)
        });
        for wave in 0..WAVES {
            let due = tide.of(wave);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            window.store(2 * wave + 1, Ordering::Relaxed);
            // The keys that the claiming thread holds at the moment are counted too.
            let left = filled / WAVES * (WAVES - 1 - wave) + filled / 1_000 + 1_000;
            while store.used_bytes() > left {
                std::thread::sleep(Duration::from_millis(2));
            }
            let took = due.elapsed();
            window.store(2 * wave + 2, Ordering::Relaxed);
            std::thread::sleep(
                took.max(Duration::from_millis(100)).min(tide.every.saturating_sub(took)).min(LONGEST_QUIET),
            );
            window.store(0, Ordering::Relaxed);
            freed_in.push(took.as_secs_f64());
        }
        is_over.store(true, Ordering::Relaxed);
        claimant.join().expect("the claimant ends")
    });
    let (expiring, quiet) = longest[1..].chunks(2).map(|both| (both[0], both[1])).unzip();
    Pauses { expiring, quiet, freed_in }
}

fn claim_until(store: &MemoryStore, window: &AtomicUsize, is_over: &AtomicBool) -> Vec<Longest> {
    /// A claim that takes this long is worth reading the waiting times, which costs as much as some claims.
    const WORTH_READING: Duration = Duration::from_micros(20);
    let now = immediate(store);
    let mut longest = vec![Longest::default(); 1 + 2 * WAVES];
    let mut waited = Waited::now();
    let mut before = Instant::now();
    for number in CLAIMED.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let (key, request) = (numbered(number), request());
        let begun = Instant::now();
        if begun - before > WORTH_READING {
            waited = Waited::now();
        }
        let begun = Instant::now();
        let claim = now.claim_now(&key, request).expect("there is room");
        before = Instant::now();
        let wall = before - begun;
        assert_eq!(claim, Claim::Acquired { attempt: 1 });
        let longest = &mut longest[window.load(Ordering::Relaxed)];
        longest.wall = longest.wall.max(wall.as_secs_f64() * 1_000.0);
        if wall > WORTH_READING {
            let waited_now = Waited::now();
            let own = wall.saturating_sub(waited_now.since(&waited));
            waited = waited_now;
            longest.own = longest.own.max(own.as_secs_f64() * 1_000.0);
            before = Instant::now();
        }
        // Release the key, so that the store does not grow while it is measured.
        let released = store.release(&key, request.token).now_or_never();
        assert_eq!(released.expect("a store in memory answers at once").expect("it holds the key"), Held::Yes);
    }
    longest
}

/// How long each thread of this process was ready to run but did not run.
struct Waited(HashMap<OsString, Duration>);

impl Waited {
    fn now() -> Self {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        Self(threads.map(|thread| (thread.file_name(), waited(&thread.path().join("schedstat")))).collect())
    }

    /// The difference to the earlier reading: for this thread, and for the other thread that waited longest.
    fn since(&self, earlier: &Self) -> Duration {
        let own = fs::read_link("/proc/thread-self").unwrap_or_default();
        let (mut mine, mut longest) = (Duration::ZERO, Duration::ZERO);
        for (thread, &waited) in &self.0 {
            let since = waited.saturating_sub(earlier.0.get(thread).copied().unwrap_or_default());
            if own.file_name() == Some(thread) {
                mine = since;
            } else {
                longest = longest.max(since);
            }
        }
        mine + longest
    }
}

fn waited(schedstat: &Path) -> Duration {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    Duration::from_nanos(text.split(' ').nth(1).and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}
