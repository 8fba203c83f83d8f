//! One subscription that hears of the ends of claims in all processes, on behalf of all waiters.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use redis::Client;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::task::JoinHandle;

pub(super) struct Listener {
    client: Client,
    channel: String,
    bells: Arc<Bells>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Keys that share a bell wake each other for nothing, which costs one more look.
struct Bells {
    hasher: RandomState,
    bells: [Notify; 256],
}

impl Bells {
    fn of(&self, key: &[u8]) -> &Notify {
        &self.bells[usize::try_from(self.hasher.hash_one(key) % 256).unwrap_or_default()]
    }

    fn ring_all(&self) {
        self.bells.iter().for_each(Notify::notify_waiters);
    }
}

impl Listener {
    pub(super) fn new(client: Client, channel: String) -> Self {
        let bells = Bells { hasher: RandomState::new(), bells: std::array::from_fn(|_| Notify::new()) };
        Self { client, channel, bells: Arc::new(bells), task: Mutex::default() }
    }

    /// Rings when the claim of this key may have ended; listens from now on.
    pub(super) fn bell(&self, key: &[u8]) -> Notified<'_> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process. If no thread
        // drives that runtime, no bell rings, and waiters look by themselves every 250 ms.
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(listen(self.client.clone(), self.channel.clone(), Arc::clone(&self.bells))));
        }
        self.bells.of(key).notified()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

async fn listen(client: Client, channel: String, bells: Arc<Bells>) {
    let mut pause = Duration::from_millis(100);
    loop {
        if let Ok(mut subscription) = client.get_async_pubsub().await
            && subscription.subscribe(&channel).await.is_ok()
        {
            pause = Duration::from_millis(100);
            // Whatever ended while nobody listened.
            bells.ring_all();
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                bells.of(message.get_payload_bytes()).notify_waiters();
            }
        }
        // Waiters look by themselves meanwhile.
        tokio::time::sleep(pause).await;
        pause = Duration::from_secs(5).min(pause * 2);
    }
}
