//! One subscription that receives the ends of claims in all processes, for all waiting requests.

use std::sync::Arc;

use futures_util::StreamExt;
use redis::aio::PubSub;
use redis::{RedisError, RedisResult};

use crate::background_task::BackgroundTask;
use crate::keyed_notify::KeyedNotify;
use crate::reconnect::{Subscription, keep_connected};
use crate::store::redis::forbidden::may_not;
use crate::store::redis::origin::Origin;
use crate::sync::atomic::{AtomicBool, Ordering};

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

    fn ends(&self) -> Ends {
        Ends {
            origin: Arc::clone(&self.origin),
            channel: self.channel.clone(),
            ended: Arc::clone(&self.ended),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Waits until the claim of the key with this message may have ended since the first poll.
    ///
    /// If no thread drives the runtime of the subscription, this never returns, and waiting requests check every 250 ms.
    /// The next request that waits subscribes again.
    pub(super) async fn ended(&self, message: &[u8]) {
        self.task.ensure(|| keep_connected(self.ends()));
        self.ended.notified(message).await;
    }
}

struct Ends {
    origin: Arc<Origin>,
    channel: String,
    ended: Arc<KeyedNotify>,
    has_warned: AtomicBool,
}

impl Subscription for Ends {
    /// While there is no connection, waiting requests check by themselves.
    async fn receive(&self) -> bool {
        let mut subscription = match subscribe(&self.origin, &self.channel).await {
            Ok(subscription) => subscription,
            Err(error) => {
                if may_not(&error) && !self.has_warned.swap(true, Ordering::SeqCst) {
                    self.warn(&error);
                }
                return false;
            }
        };
        // Claims may have ended before the subscription began.
        self.ended.notify_all();
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            self.ended.notify(message.get_payload_bytes());
        }
        true
    }
}

impl Ends {
    fn warn(&self, error: &RedisError) {
        tracing::warn!(
            %error,
            "notifications cannot be received: requests that wait for a request of another process poll every 250 ms; grant \
             +subscribe and &{}",
            self.channel
        );
    }
}

async fn subscribe(origin: &Origin, channel: &str) -> RedisResult<PubSub> {
    let mut subscription = origin.listen().await?;
    subscription.subscribe(channel).await?;
    Ok(subscription)
}
