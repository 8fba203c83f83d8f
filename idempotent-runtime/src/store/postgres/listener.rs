//! One connection that listens for the ends of claims in all processes, for all waiters of this process.
//!
//! Its loop is separate from the loop of `store/redis/listener.rs`. They share the background task, the backoff and the
//! notification, and every step of the loops differs.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};

use crate::background_task::BackgroundTask;
use crate::backoff::Backoff;
use crate::keyed_notify::KeyedNotify;
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
    /// If no thread drives the runtime of the connection, this never resolves, and waiters look at the key every 250 ms.
    pub(super) async fn ended(&self, pool: &PgPool, digest: &[u8; 32]) {
        self.task.ensure(|| listen(pool.clone(), self.channel.clone(), Arc::clone(&self.ended)));
        self.ended.notified(digest).await;
    }
}

/// Returns a pool of one connection, so that the listener keeps no connection of the application's pool. It uses the options that
/// the application's pool has at this moment.
fn own_pool(pool: &PgPool) -> Result<PgPool, sqlx::Error> {
    Ok(PgPoolOptions::new().max_connections(1).connect_lazy_with(encrypted(&pool.connect_options())?))
}

async fn listen(pool: PgPool, channel: String, ended: Arc<KeyedNotify>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        if let Ok(own) = own_pool(&pool)
            && let Ok(mut listener) = PgListener::connect_with(&own).await
            && listener.listen(&channel).await.is_ok()
        {
            backoff.reset();
            listener.eager_reconnect(false);
            // Claims may have ended before the connection listened.
            ended.notify_all();
            // Until the connection is lost: a new one is made with the options of that moment.
            while let Ok(Some(notification)) = listener.try_recv().await {
                match digest_of(notification.payload()) {
                    Some(digest) => ended.notify(&digest),
                    None => ended.notify_all(),
                }
            }
        }
        // Waiters look by themselves meanwhile.
        backoff.wait().await;
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
