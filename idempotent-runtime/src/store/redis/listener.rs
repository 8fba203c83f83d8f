//! One subscription that receives the ends of claims in all processes, for all waiting requests.
//!
//! The loop is separate from that of `store/postgres/listener.rs`. Both share the task, the pause and the notification,
//! but differ in each step.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::RedisResult;
use redis::aio::PubSub;

use crate::background_task::BackgroundTask;
use crate::backoff::Backoff;
use crate::keyed_notify::KeyedNotify;
use crate::store::redis::origin::Origin;
use crate::store::redis::scripts::may_not;

pub(super) struct Listener {
    origin: Arc<Origin>,
    channel: String,
    ended: Arc<KeyedNotify>,
    task: BackgroundTask,
}

impl Listener {
    pub(super) fn new(origin: Origin, channel: String) -> Self {
        Self { origin: Arc::new(origin), channel, ended: Arc::default(), task: BackgroundTask::default() }
    }

    /// Waits until the claim of the key with this message may have ended since the first poll.
    ///
    /// If no thread drives the runtime of the subscription, this never returns, and waiting requests check every 250
    /// ms.
    pub(super) async fn ended(&self, message: &[u8]) {
        self.task.ensure(|| listen(Arc::clone(&self.origin), self.channel.clone(), Arc::clone(&self.ended)));
        self.ended.notified(message).await;
    }
}

async fn listen(origin: Arc<Origin>, channel: String, ended: Arc<KeyedNotify>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut has_warned = false;
    loop {
        match subscribe(&origin, &channel).await {
            Ok(mut subscription) => {
                backoff.reset();
                // Claims may have ended before the subscription began.
                ended.notify_all();
                let mut messages = subscription.on_message();
                while let Some(message) = messages.next().await {
                    ended.notify(message.get_payload_bytes());
                }
            }
            Err(error) if may_not(&error) && !mem::replace(&mut has_warned, true) => tracing::warn!(
                %error,
                "notifications cannot be received: requests that wait for a request of another process poll every 250 ms; grant \
                 +subscribe and &{channel}"
            ),
            Err(_) => {}
        }
        // Meanwhile waiting requests check by themselves.
        backoff.wait().await;
    }
}

async fn subscribe(origin: &Origin, channel: &str) -> RedisResult<PubSub> {
    let mut subscription = origin.listen().await?;
    subscription.subscribe(channel).await?;
    Ok(subscription)
}
