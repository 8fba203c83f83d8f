//! One connection that receives the ends of claims in all processes, for all waiting requests.

use std::sync::Arc;

use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};

use crate::background_task::BackgroundTask;
use crate::keyed_notify::KeyedNotify;
use crate::reconnect::{Subscription, keep_connected};
use crate::store::postgres::in_clear::encrypted;

pub(super) struct Listener {
    channel: String,
    ended: Arc<KeyedNotify>,
    task: BackgroundTask,
}

impl Listener {
    pub(super) fn new(channel: String) -> Self {
        Self { channel, ended: Arc::default(), task: BackgroundTask::default() }
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Resolves when the claim of this digest may have ended since the first poll.
    ///
    /// If no thread drives the runtime of the connection, this never resolves, and waiting requests check every 250 ms. The
    /// next request that waits connects again.
    pub(super) async fn ended(&self, pool: &PgPool, digest: &[u8; 32]) {
        let ends = || Ends { pool: pool.clone(), channel: self.channel.clone(), ended: Arc::clone(&self.ended) };
        self.task.ensure(|| keep_connected(ends()));
        self.ended.notified(digest).await;
    }
}

struct Ends {
    pool: PgPool,
    channel: String,
    ended: Arc<KeyedNotify>,
}

impl Ends {
    /// Makes the connection of its own pool, so that it takes none of the application's away for good. Its options are
    /// those that the application's pool has at this moment.
    async fn connect(&self) -> Result<PgListener, sqlx::Error> {
        let options = encrypted(&self.pool.connect_options())?;
        let own = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&own).await?;
        listener.listen(&self.channel).await?;
        // A new connection is made with the options of that moment.
        listener.eager_reconnect(false);
        Ok(listener)
    }
}

impl Subscription for Ends {
    /// While there is no connection, waiting requests check by themselves.
    async fn receive(&self) -> bool {
        let Ok(mut listener) = self.connect().await else { return false };
        // Claims may have ended before the connection listened.
        self.ended.notify_all();
        while let Ok(Some(notification)) = listener.try_recv().await {
            match digest_of(notification.payload()) {
                Some(digest) => self.ended.notify(&digest),
                None => self.ended.notify_all(),
            }
        }
        true
    }
}

fn digest_of(payload: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let pairs = payload.as_bytes().chunks_exact(2);
    if payload.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}
