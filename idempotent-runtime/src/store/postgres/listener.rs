//! One connection that listens for the ends of claims in all processes.

use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};

use crate::store::ended_claims::{EndedClaims, Heard, Subscription};

pub(super) struct Listener {
    channel: String,
    ended: EndedClaims,
}

struct Channel {
    pool: PgPool,
    name: String,
}

impl Listener {
    pub(super) fn new(channel: String) -> Self {
        Self { channel, ended: EndedClaims::default() }
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Resolves when the claim of this digest may have ended since the first poll.
    pub(super) async fn ended(&self, pool: &PgPool, digest: &[u8; 32]) {
        self.ended.of(digest, || Channel { pool: own_pool(pool), name: self.channel.clone() }).await;
    }
}

/// A connection beside the application's own, of which none is taken away for good.
fn own_pool(pool: &PgPool) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect_lazy_with((*pool.connect_options()).clone())
}

impl Subscription for Channel {
    async fn listen(&self, heard: &mut Heard) {
        let Ok(mut listener) = PgListener::connect_with(&self.pool).await else { return };
        if listener.listen(&self.name).await.is_err() {
            return;
        }
        heard.begins();
        loop {
            match listener.try_recv().await {
                Ok(Some(notification)) => match digest_of(notification.payload()) {
                    Some(digest) => heard.of(&digest),
                    None => heard.any(),
                },
                // The connection was lost, and with it what came meanwhile.
                Ok(None) => heard.any(),
                Err(_) => return,
            }
        }
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
