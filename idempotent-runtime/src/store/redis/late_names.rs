//! The names of claims that expire, on their way to the index.
//!
//! Most claims end within milliseconds. So a name is sent only if its claim has not ended after [`DELAY`], and many names are sent
//! in one command. The end of a claim whose name was not sent has no name to remove.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use redis::Cmd;
use tokio::sync::Notify;

use crate::background_task::BackgroundTask;
use crate::store::columns::span_millis;
use crate::store::redis::given_back;
use crate::store::redis::unawaited::Unawaited;
use crate::sync::tokio::time::{Instant, sleep};
use crate::sync::{Mutex, lock};

/// The time after which a name is sent. It is sent at the latest after twice that time.
const DELAY: Duration = Duration::from_millis(20);

/// The largest number of names in one command.
const MOST: usize = 256;

pub(super) struct LateNames {
    names: Arc<Names>,
    task: BackgroundTask,
}

struct Names {
    waiting: Mutex<HashMap<Vec<u8>, Waiting>>,
    /// The notification that a name waits.
    any: Notify,
    unawaited: Unawaited,
    /// The sets of claims that expire.
    sets: Vec<String>,
}

struct Waiting {
    since: Instant,
    /// In milliseconds since 1970.
    expires_at: i64,
}

impl LateNames {
    pub(super) fn new(unawaited: Unawaited, sets: Vec<String>) -> Self {
        let names = Names { waiting: Mutex::default(), any: Notify::new(), unawaited, sets };
        Self { names: Arc::new(names), task: BackgroundTask::default() }
    }

    /// Sends the name of a claim later, unless the claim has ended by then.
    pub(super) fn add(&self, name: Vec<u8>, ttl: Duration) {
        let waiting = Waiting { since: Instant::now(), expires_at: expiry_after(ttl) };
        let was_empty = {
            let mut all = lock(&self.names.waiting);
            all.insert(name, waiting);
            all.len() == 1
        };
        self.task.ensure(|| send_for_ever(Arc::clone(&self.names)));
        if was_empty {
            self.names.any.notify_one();
        }
    }

    /// Takes the name of a claim that is about to end. Returns nothing if it was sent, or the claim was made elsewhere.
    pub(super) fn take(&self, name: &[u8]) -> Option<Taken<'_>> {
        let (name, waiting) = lock(&self.names.waiting).remove_entry(name)?;
        Some(Taken { names: self, entry: Some((name, waiting)) })
    }

    /// Sends all names.
    pub(super) async fn flush(&self) {
        self.names.send(Duration::ZERO).await;
    }
}

/// A name that was taken. Unless its claim has ended, it waits again when this is dropped.
pub(super) struct Taken<'a> {
    names: &'a LateNames,
    entry: Option<(Vec<u8>, Waiting)>,
}

impl Taken<'_> {
    pub(super) fn has_ended(mut self) {
        self.entry = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some((name, waiting)) = self.entry.take() {
            lock(&self.names.names.waiting).entry(name).or_insert(waiting);
            self.names.names.any.notify_one();
        }
    }
}

impl Names {
    /// Sends the names that have waited for so long.
    async fn send(&self, at_least: Duration) {
        let rests = {
            // Kept until the names are sent, so that the script that ends a claim comes after its name.
            let mut waiting = lock(&self.waiting);
            let due: Vec<_> = waiting.extract_if(|_, waiting| waiting.since.elapsed() >= at_least).collect();
            let rests: Vec<_> =
                self.entering(&due).into_iter().filter_map(|enter| self.unawaited.begin(enter)).collect();
            drop(waiting);
            rests
        };
        join_all(rests).await;
    }

    /// Returns the commands that add the names to their sets.
    fn entering(&self, names: &[(Vec<u8>, Waiting)]) -> Vec<Cmd> {
        let mut of_sets: HashMap<&str, Vec<_>> = HashMap::new();
        for (name, waiting) in names {
            of_sets.entry(set_of(&self.sets, name)).or_default().push((waiting.expires_at, name));
        }
        let mut commands = Vec::new();
        for (set, names) in of_sets {
            for some in names.chunks(MOST) {
                let mut enter = redis::cmd("ZADD");
                enter.arg(set);
                for (expires_at, name) in some {
                    enter.arg(*expires_at).arg(name);
                }
                commands.push(enter);
            }
        }
        commands
    }
}

async fn send_for_ever(names: Arc<Names>) {
    loop {
        if lock(&names.waiting).is_empty() {
            names.any.notified().await;
        }
        sleep(DELAY).await;
        names.send(DELAY).await;
    }
}

/// Returns the set of claims that expire which contains this name.
pub(super) fn set_of<'a>(sets: &'a [String], name: &[u8]) -> &'a str {
    match sets {
        [only] => only,
        sets => &sets[usize::from(given_back::slot(name)) % sets.len()],
    }
}

/// Returns that time from now in milliseconds, by this machine's clock. If the clock is wrong, a later check corrects
/// the result.
pub(super) fn expiry_after(span: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    span_millis(now).saturating_add(span_millis(span))
}
