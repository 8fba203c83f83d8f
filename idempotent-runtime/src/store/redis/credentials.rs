//! The user name and password of the store.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use redis::auth::{BasicAuth, StreamingCredentialsProvider};
use redis::{RedisConnectionInfo, RedisResult};

#[derive(Clone)]
pub(super) struct Credentials(pub(super) Arc<dyn StreamingCredentialsProvider>);

impl StreamingCredentialsProvider for Credentials {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        self.0.subscribe()
    }
}

impl Credentials {
    /// Returns the settings with the current user name and password.
    pub(super) async fn apply_to(&self, settings: RedisConnectionInfo) -> RedisResult<RedisConnectionInfo> {
        Ok(match self.subscribe().next().await.transpose()? {
            Some(current) => settings.set_username(current.username()).set_password(current.password()),
            None => settings,
        })
    }
}
