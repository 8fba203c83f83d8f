//! One subscription that hears of the ends of claims in all processes.

use futures_util::StreamExt;
use redis::Client;

use crate::store::ended_claims::{EndedClaims, Heard, Subscription};

pub(super) struct Listener {
    channel: Channel,
    ended: EndedClaims,
}

#[derive(Clone)]
struct Channel {
    client: Client,
    name: String,
}

impl Listener {
    pub(super) fn new(client: Client, channel: String) -> Self {
        Self { channel: Channel { client, name: channel }, ended: EndedClaims::default() }
    }

    /// Resolves when the claim of this key may have ended since the first poll.
    pub(super) async fn ended(&self, key: &[u8]) {
        self.ended.of(key, || self.channel.clone()).await;
    }
}

impl Subscription for Channel {
    async fn listen(&self, heard: &mut Heard) {
        let Ok(mut subscription) = self.client.get_async_pubsub().await else { return };
        if subscription.subscribe(&self.name).await.is_ok() {
            heard.begins();
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                heard.of(message.get_payload_bytes());
            }
        }
    }
}
