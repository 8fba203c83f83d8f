//! Where the store connects to, and as whom.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use redis::aio::{ConnectionManagerConfig, PubSub};
use redis::auth::{BasicAuth, StreamingCredentialsProvider};
#[cfg(feature = "redis-cluster")]
use redis::cluster::ClusterClient;
#[cfg(feature = "redis-cluster")]
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisResult};

use crate::store::redis::open_error::RedisOpenError;
use crate::store::redis::reconnecting::Reconnecting;

/// A server, or some of a Cluster's.
pub(super) struct Origin {
    client: Client,
    credentials: Option<Credentials>,
}

/// The registry's time limit cuts a call off much earlier; this one is for those who call the store themselves.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the first connection may take. Its failure is reported at once.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Credentials(pub(super) Arc<dyn StreamingCredentialsProvider>);

impl StreamingCredentialsProvider for Credentials {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        self.0.subscribe()
    }
}

impl Origin {
    pub(super) fn of(url: &str, credentials: Option<Credentials>) -> Result<Self, RedisOpenError> {
        let information = url.into_connection_info().map_err(|error| {
            // The client tells it by this text alone.
            if error.to_string().contains("TLS") { RedisOpenError::Tls } else { RedisOpenError::Url(error) }
        })?;
        // To name the library, the user would need another right.
        let settings = information.redis_settings().clone().set_skip_set_lib_name();
        let information = information.set_redis_settings(settings).set_tcp_settings(tcp_settings());
        let client = Client::open(information).map_err(RedisOpenError::Url)?;
        Ok(Self { client, credentials })
    }

    pub(super) async fn connect(&self) -> Result<Reconnecting, RedisOpenError> {
        // Without the manager's patience, which is for a server that was there before.
        let mut probe = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE));
        let mut config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(Duration::from_secs(3)))
            .set_max_delay(Duration::from_secs(1));
        if let Some(credentials) = &self.credentials {
            probe = probe.set_credentials_provider(credentials.clone());
            config = config.set_credentials_provider(credentials.clone());
        }
        let probe = self.client.get_multiplexed_async_connection_with_config(&probe).await;
        drop(probe.map_err(RedisOpenError::Unreachable)?);
        Reconnecting::to(self.client.clone(), config).await.map_err(RedisOpenError::Unreachable)
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) async fn connect_to_cluster(&self, urls: Vec<String>) -> Result<ClusterConnection, RedisOpenError> {
        let mut builder = ClusterClient::builder(urls).tcp_settings(tcp_settings());
        if let Some(credentials) = &self.credentials {
            builder = builder.set_credentials_provider(credentials.clone());
        }
        let client = builder.build().map_err(RedisOpenError::Url)?;
        client.get_async_connection().await.map_err(RedisOpenError::Unreachable)
    }

    /// A connection that listens to messages.
    pub(super) async fn listen(&self) -> RedisResult<PubSub> {
        let Some(credentials) = &self.credentials else { return self.client.get_async_pubsub().await };
        let mut information = self.client.get_connection_info().clone();
        if let Some(current) = credentials.subscribe().next().await.transpose()? {
            let user = information.redis_settings().clone();
            let user = user.set_username(current.username()).set_password(current.password());
            information = information.set_redis_settings(user);
        }
        Client::open(information)?.get_async_pubsub().await
    }
}

/// A connection whose packets are dropped breaks within seconds, even while nothing is sent.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5));
    #[cfg(unix)]
    let keepalive = keepalive.with_interval(Duration::from_secs(1)).with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}
