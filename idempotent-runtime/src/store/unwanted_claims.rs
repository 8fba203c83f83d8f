//! The claims of one store that wait to be given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::background_task::BackgroundTask;
use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::store::claim::{Held, Token};
use crate::store::error::StoreError;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicBool;
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::time::Instant;

/// The number of claims that are given back at once. It is small, so that they do not delay new claims.
const AT_ONCE: usize = 8;

/// The lease of a claim that must lapse.
pub(crate) trait Lapse: Send + Sync + 'static {
    fn key(&self) -> &RecordKey;

    fn token(&self) -> Token;

    /// Stops the renewals, so that the claim lapses by itself if the store cannot be asked to end it.
    fn stop_renewals(&self);

    /// Ends the lease as soon as no renewal is in progress.
    fn lapse(&self) -> BoxFuture<'_, Result<Held, StoreError>>;
}

/// A claim under which nothing runs.
#[derive(Clone)]
pub(super) struct Unwanted {
    pub(super) key: RecordKey,
    pub(super) token: Token,
    /// Whether the claim is released, which frees the key. Otherwise the claim lapses and keeps the number of its
    /// attempt.
    pub(super) is_released: bool,
    /// The time in which the claim may still arrive in the store. A try that finds no claim is repeated until
    /// `arrives_until`. Each failed call moves that to `arrives_within` from then.
    pub(super) arrives_within: Duration,
    pub(super) arrives_until: Deadline,
    /// The time at which the tries end if the store fails.
    pub(super) tried_until: Deadline,
    pub(super) backoff: Backoff,
    /// The lease of the claim if it was renewed. A renewal in progress must end before the claim can lapse.
    pub(super) renewed: Option<Arc<dyn Lapse>>,
}

impl Unwanted {
    /// Returns whether the claim has ended, or need not be tried again.
    pub(super) fn is_gone(&mut self, ended: &Result<Held, StoreError>) -> bool {
        match ended {
            Ok(Held::Yes) => true,
            // After a release, the claim cannot arrive any more.
            Ok(Held::No) => self.is_released || self.arrives_until.is_over(),
            Err(_) => {
                // A paused store executes the calls that were sent to it when it continues.
                self.arrives_until = Deadline::after(self.arrives_within);
                self.tried_until.is_over()
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct GiveBacks {
    /// Whether the queue may hold claims. If not, a new claim need not take the lock.
    pub(super) has_any: AtomicBool,
    pub(super) queue: Mutex<Queue>,
    pub(super) changed: Notify,
    pub(super) task: BackgroundTask,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) by_due: BTreeMap<(Instant, u64), Unwanted>,
    pub(super) next_number: u64,
    pub(super) has_overflowed: bool,
}

impl Queue {
    pub(super) fn insert(&mut self, due: Instant, unwanted: Unwanted) {
        self.next_number += 1;
        self.by_due.insert((due, self.next_number), unwanted);
    }

    /// Returns the claims that are due. They stay in the queue until they have ended, because the task may be dropped
    /// with its runtime.
    pub(super) fn due(&self) -> Vec<((Instant, u64), Unwanted)> {
        let now = Instant::now();
        let due = self.by_due.iter().take(AT_ONCE).take_while(|((due, _), _)| *due <= now);
        due.map(|(place, unwanted)| (*place, unwanted.clone())).collect()
    }
}
