//! One connection that listens for the ends of claims in all processes, on behalf of all waiters.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::task::JoinHandle;

pub(super) struct Listener {
    channel: String,
    bells: Arc<Bells>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Keys that share a bell wake each other for nothing, which costs one more look.
struct Bells([Notify; 256]);

impl Bells {
    fn of(&self, digest: &[u8; 32]) -> &Notify {
        &self.0[usize::from(digest[0])]
    }

    fn ring_all(&self) {
        self.0.iter().for_each(Notify::notify_waiters);
    }
}

impl Listener {
    pub(super) fn new(channel: String) -> Self {
        Self { channel, bells: Arc::new(Bells(std::array::from_fn(|_| Notify::new()))), task: Mutex::default() }
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Rings when the claim of this digest may have ended; listens from now on.
    pub(super) fn bell(&self, pool: &PgPool, digest: &[u8; 32]) -> Notified<'_> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process. If no thread
        // drives that runtime, no bell rings, and waiters look by themselves every 250 ms.
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(listen(own_pool(pool), self.channel.clone(), Arc::clone(&self.bells))));
        }
        self.bells.of(digest).notified()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// A connection beside the application's own, of which none is taken away for good.
fn own_pool(pool: &PgPool) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect_lazy_with((*pool.connect_options()).clone())
}

async fn listen(pool: PgPool, channel: String, bells: Arc<Bells>) {
    let mut pause = Duration::from_millis(100);
    loop {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(&channel).await.is_ok()
        {
            pause = Duration::from_millis(100);
            // Whatever ended while nobody listened.
            bells.ring_all();
            loop {
                match listener.try_recv().await {
                    Ok(Some(notification)) => match digest_of(notification.payload()) {
                        Some(digest) => bells.of(&digest).notify_waiters(),
                        None => bells.ring_all(),
                    },
                    // The connection was lost, and with it what came meanwhile.
                    Ok(None) => bells.ring_all(),
                    Err(_) => break,
                }
            }
        }
        // Waiters look by themselves meanwhile.
        tokio::time::sleep(pause).await;
        pause = Duration::from_secs(5).min(pause * 2);
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
