//! One subscription that hears of the ends of claims in all processes, on behalf of all waiters.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::Client;

use crate::background_task::BackgroundTask;
use crate::backoff::Backoff;
use crate::keyed_notify::KeyedNotify;

pub(super) struct Listener {
    client: Client,
    channel: String,
    ended: Arc<KeyedNotify>,
    task: BackgroundTask,
}

impl Listener {
    pub(super) fn new(client: Client, channel: String) -> Self {
        Self { client, channel, ended: Arc::default(), task: BackgroundTask::default() }
    }

    /// Resolves when the claim of this key may have ended since the first poll.
    ///
    /// If no thread drives the runtime of the subscription, it never does, and waiters look by themselves every 250 ms.
    pub(super) async fn ended(&self, key: &[u8]) {
        self.task.ensure(|| listen(self.client.clone(), self.channel.clone(), Arc::clone(&self.ended)));
        self.ended.notified(key).await;
    }
}

async fn listen(client: Client, channel: String, ended: Arc<KeyedNotify>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        if let Ok(mut subscription) = client.get_async_pubsub().await
            && subscription.subscribe(&channel).await.is_ok()
        {
            backoff.reset();
            // Claims may have ended before the subscription began.
            ended.notify_all();
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                ended.notify(message.get_payload_bytes());
            }
        }
        // Waiters look by themselves meanwhile.
        backoff.wait().await;
    }
}
