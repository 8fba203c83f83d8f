//! Hears of the ends of claims in all processes: by one subscription, on behalf of all waiters.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use crate::background_task::BackgroundTask;
use crate::backoff::Backoff;
use crate::keyed_notify::KeyedNotify;

#[derive(Default)]
pub(super) struct EndedClaims {
    ended: Arc<KeyedNotify>,
    task: BackgroundTask,
}

/// A way to hear of the ends of claims.
pub(super) trait Subscription: Send + Sync + 'static {
    /// Subscribes, and tells `heard` what it hears until it breaks.
    fn listen(&self, heard: &mut Heard) -> impl Future<Output = ()> + Send;
}

/// What a subscription tells.
pub(super) struct Heard {
    ended: Arc<KeyedNotify>,
    backoff: Backoff,
}

impl Heard {
    /// It begins: claims may have ended before.
    pub(super) fn begins(&mut self) {
        self.backoff.reset();
        self.any();
    }

    /// The claim of this key has ended.
    pub(super) fn of(&self, key: &(impl Hash + ?Sized)) {
        self.ended.notify(key);
    }

    /// A claim may have ended; it is not known which one.
    pub(super) fn any(&self) {
        self.ended.notify_all();
    }
}

impl EndedClaims {
    /// Resolves when the claim of this key may have ended since the first poll.
    ///
    /// If no thread drives the runtime of the subscription, it never does, and waiters look by themselves every 250 ms.
    pub(super) async fn of<S: Subscription>(&self, key: &(impl Hash + ?Sized), subscription: impl FnOnce() -> S) {
        self.task.ensure(|| listen(subscription(), Arc::clone(&self.ended)));
        self.ended.notified(key).await;
    }
}

async fn listen(subscription: impl Subscription, ended: Arc<KeyedNotify>) {
    let mut heard = Heard { ended, backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)) };
    loop {
        subscription.listen(&mut heard).await;
        // Waiters look by themselves meanwhile.
        heard.backoff.wait().await;
    }
}
