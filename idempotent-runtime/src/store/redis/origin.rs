//! The server to which the store connects, and the credentials.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "redis-cluster")]
use redis::ConnectionInfo;
use redis::aio::{ConnectionManagerConfig, PubSub};
#[cfg(feature = "redis-cluster")]
use redis::cluster::ClusterClient;
#[cfg(feature = "redis-cluster")]
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult};

use crate::store::redis::address::Address;
#[cfg(feature = "redis-cluster")]
use crate::store::redis::certificates::Certificates;
#[cfg(feature = "redis-cluster")]
use crate::store::redis::cluster::{self, Resolver};
use crate::store::redis::credentials::Credentials;
use crate::store::redis::open_error::RedisOpenError;
use crate::store::redis::reconnecting::Reconnecting;
#[cfg(feature = "redis-sentinel")]
use crate::store::redis::sentinel::Watched;
#[cfg(feature = "redis-cluster")]
use crate::store::redis::tcp::tcp_settings;
use crate::store::redis::wire::Way;

/// A server, a server of a Cluster, or the master that Sentinels name.
pub(super) struct Origin {
    way: Way,
    credentials: Option<Credentials>,
}

/// The response timeout for calls outside a registry. The time limit of a registry is much shorter.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time limit for a connection to a server that was reached before.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);

/// The time limit for the first connection, whose failure is reported at once.
const PATIENCE: Duration = Duration::from_secs(5);

impl Origin {
    pub(super) fn of(address: Address, credentials: Option<Credentials>) -> Result<Self, RedisOpenError> {
        #[cfg(feature = "redis-sentinel")]
        let address = {
            let mut address = address;
            if let Some(sentinels) = address.sentinels.take() {
                let config = with(credentials.as_ref(), connection_config(CONNECTED_WITHIN));
                let config = config.set_response_timeout(Some(RESPONSE_TIMEOUT));
                let watched = Watched::new(address, sentinels, credentials.clone(), config);
                return Ok(Self { way: Way::Sentinels(Arc::new(watched)), credentials });
            }
            address
        };
        let mut config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(CONNECTED_WITHIN))
            .set_max_delay(Duration::from_secs(1));
        if let Some(credentials) = &credentials {
            config = config.set_credentials_provider(credentials.clone());
        }
        let client = Client::open(address.server).map_err(RedisOpenError::Url)?;
        Ok(Self { way: Way::Server(Arc::new((client, config))), credentials })
    }

    pub(super) async fn connect(&self) -> Result<Reconnecting, RedisOpenError> {
        match &self.way {
            Way::Server(server) => {
                // The probe does not retry. The retries of the manager are for a server that was reached before.
                let probe = with(self.credentials.as_ref(), connection_config(PATIENCE));
                let probe = server.0.get_multiplexed_async_connection_with_config(&probe).await;
                drop(probe.map_err(RedisOpenError::Unreachable)?);
            }
            #[cfg(feature = "redis-sentinel")]
            Way::Sentinels(_) => {}
        }
        let wire = self.way.connected_wire().await.map_err(RedisOpenError::Unreachable)?;
        Ok(Reconnecting::to(self.way.clone(), wire))
    }

    /// Returns the hosts of a Cluster, as the first of these servers that answers names them. The client of the Cluster
    /// sends the password to each host as soon as it knows the host.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn hosts_of_cluster(&self, servers: &[ConnectionInfo]) -> RedisResult<Vec<String>> {
        let config = with(self.credentials.as_ref(), connection_config(PATIENCE));
        let mut named = Ok(Vec::new());
        for server in servers {
            let asking = async {
                let client = Client::open(server.clone())?;
                cluster::hosts(&mut client.get_multiplexed_async_connection_with_config(&config).await?).await
            };
            named = asking.await;
            if named.is_ok() {
                break;
            }
        }
        named
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) async fn connect_to_cluster(
        &self,
        servers: Vec<ConnectionInfo>,
        certificates: &Certificates,
        resolver: Resolver,
    ) -> Result<ClusterConnection, RedisOpenError> {
        let mut builder = ClusterClient::builder(servers).tcp_settings(tcp_settings()).async_dns_resolver(resolver);
        if let Some(credentials) = &self.credentials {
            builder = builder.set_credentials_provider(credentials.clone());
        }
        #[cfg(feature = "tls")]
        if let Some(certificates) = certificates.get() {
            builder = builder.certs(certificates);
        }
        #[cfg(not(feature = "tls"))]
        let Certificates = certificates;
        let client = builder.build().map_err(RedisOpenError::Url)?;
        client.get_async_connection().await.map_err(RedisOpenError::Unreachable)
    }

    /// Opens a connection that receives messages.
    pub(super) async fn listen(&self) -> RedisResult<PubSub> {
        let client = match &self.way {
            Way::Server(server) => server.0.clone(),
            #[cfg(feature = "redis-sentinel")]
            Way::Sentinels(watched) => watched.master().await?,
        };
        let Some(credentials) = &self.credentials else { return client.get_async_pubsub().await };
        let information = client.get_connection_info().clone();
        let settings = credentials.apply_to(information.redis_settings().clone()).await?;
        Client::open(information.set_redis_settings(settings))?.get_async_pubsub().await
    }
}

fn connection_config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(timeout))
}

fn with(credentials: Option<&Credentials>, config: AsyncConnectionConfig) -> AsyncConnectionConfig {
    match credentials {
        Some(credentials) => config.set_credentials_provider(credentials.clone()),
        None => config,
    }
}
