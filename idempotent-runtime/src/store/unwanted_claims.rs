//! The claims of one store that are on their way back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::store::claim::{Held, Token};
use crate::store::error::StoreError;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicBool;
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;

/// How many are asked for at once: what is given back must not hold up what is claimed.
const AT_ONCE: usize = 8;

/// The lease of a claim that is to lapse.
pub(crate) trait Lapse: Send + Sync + 'static {
    fn key(&self) -> &RecordKey;

    fn token(&self) -> Token;

    /// Renews it no longer, so that it lapses by itself if its end cannot be asked for.
    fn stop_renewals(&self);

    /// Ends the lease, once no renewal is on its way.
    fn lapse(&self) -> BoxFuture<'_, Result<Held, StoreError>>;
}

/// A claim under which nothing runs.
#[derive(Clone)]
pub(super) struct Unwanted {
    pub(super) key: RecordKey,
    pub(super) token: Token,
    /// Whether the key is free afterwards; otherwise the claim lapses, and keeps the number of its attempt.
    pub(super) is_released: bool,
    /// The claim may arrive in the store after its own end, so that a look which finds nothing is repeated until then: for so long
    /// after the store could not be asked.
    pub(super) arrives_within: Duration,
    pub(super) arrives_until: Deadline,
    /// Tried so long where the store fails.
    pub(super) tried_until: Deadline,
    pub(super) backoff: Backoff,
    /// A renewal that is on its way comes first.
    pub(super) renewed: Option<Arc<dyn Lapse>>,
}

impl Unwanted {
    /// Whether it has ended, or need not be tried again.
    pub(super) fn is_gone(&mut self, ended: &Result<Held, StoreError>) -> bool {
        match ended {
            Ok(Held::Yes) => true,
            // A release keeps the claim from arriving.
            Ok(Held::No) => self.is_released || self.arrives_until.is_over(),
            Err(_) => {
                // A store that is paused executes what was sent to it when it continues.
                self.arrives_until = Deadline::after(self.arrives_within);
                self.tried_until.is_over()
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct GiveBacks {
    /// Whether the queue may hold some: a claim need not take the lock otherwise.
    pub(super) has_any: AtomicBool,
    pub(super) queue: Mutex<Queue>,
    pub(super) changed: Notify,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) by_due: BTreeMap<(Instant, u64), Unwanted>,
    pub(super) next_number: u64,
    /// No `BackgroundTask`: it ends under the lock of this queue, and is replaced when it makes no progress.
    pub(super) task: Option<JoinHandle<()>>,
    /// When the task has looked at the queue last.
    pub(super) looked_at: Option<Instant>,
    pub(super) has_overflowed: bool,
}

impl Queue {
    pub(super) fn insert(&mut self, due: Instant, unwanted: Unwanted) {
        self.next_number += 1;
        self.by_due.insert((due, self.next_number), unwanted);
    }

    /// Whether the task has not looked for so long although something was due.
    pub(super) fn is_stuck(&self, patience: Duration) -> bool {
        let first_due = self.by_due.first_key_value().map(|((due, _), _)| *due);
        let is_long_ago = |moment: Option<Instant>| moment.is_some_and(|moment| moment.elapsed() > patience);
        is_long_ago(self.looked_at) && is_long_ago(first_due)
    }

    /// Those that are due, which stay here until they have ended: a task may be dropped with its runtime.
    pub(super) fn due(&self) -> Vec<((Instant, u64), Unwanted)> {
        let now = Instant::now();
        let due = self.by_due.iter().take(AT_ONCE).take_while(|((due, _), _)| *due <= now);
        due.map(|(place, unwanted)| (*place, unwanted.clone())).collect()
    }
}
