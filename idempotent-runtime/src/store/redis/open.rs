//! Opening the store: options, what the server must be like, and errors that say what to do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError};

use crate::error_text::with_causes;
use crate::store::redis::connection::{Acknowledged, Connection};
use crate::store::redis::listener::Listener;
use crate::store::redis::scripts::Scripts;
use crate::store::redis::store::{Inner, RedisStore};

/// Collects the options of a [`RedisStore`].
///
/// # Examples
///
/// ```
/// use idempotent_runtime::store::{RedisOpenError, RedisStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let builder = RedisStore::builder("http://localhost/").prefix("payments:");
/// let error = builder.open().await.expect_err("Redis has URLs of its own");
/// assert!(matches!(error, RedisOpenError::Url(_)));
/// # }
/// ```
#[must_use = "a builder does nothing until `open`"]
pub struct RedisStoreBuilder {
    source: Source,
    prefix: String,
    allow_eviction: bool,
    wait: Option<(usize, Duration)>,
}

enum Source {
    Url(String),
    Manager(ConnectionManager),
    #[cfg(feature = "redis-cluster")]
    ClusterUrls(Vec<String>),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

/// How many claims and completions wait for replicas at once: each blocks a connection.
const WAITING_CONNECTIONS: usize = 16;

/// Without the URL, which can hold a password.
impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("prefix", &self.prefix)
            .field("allow_eviction", &self.allow_eviction)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl RedisStoreBuilder {
    fn new(source: Source) -> Self {
        Self { source, prefix: "idempotency:".to_owned(), allow_eviction: false, wait: None }
    }

    pub(super) fn url(url: &str) -> Self {
        Self::new(Source::Url(url.to_owned()))
    }

    pub(super) fn manager(manager: ConnectionManager) -> Self {
        Self::new(Source::Manager(manager))
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) fn cluster_urls(urls: Vec<String>) -> Self {
        Self::new(Source::ClusterUrls(urls))
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) fn cluster(connection: redis::cluster_async::ClusterConnection) -> Self {
        Self::new(Source::Cluster(connection))
    }

    /// The prefix of the store's keys in Redis; `idempotency:` by default.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Accepts a server that evicts keys when its memory is full.
    ///
    /// **If a record is evicted, its retry runs the handler again.** Use this only if that is harmless.
    pub fn allow_eviction(mut self) -> Self {
        self.allow_eviction = true;
        self
    }

    /// Waits after each claim and each completion until `replicas` replicas have it, for at most `timeout`. If they do not
    /// have it by then, the request is rejected with 503, or its recording is tried again.
    ///
    /// This reduces what a failover can lose. It is no guarantee: Redis can promote a replica that has not received the last
    /// writes, and a claim that was written but not acknowledged in time can survive.
    pub fn wait_replicas(mut self, replicas: usize, timeout: Duration) -> Self {
        self.wait = Some((replicas, timeout));
        self
    }

    /// Connects and checks the server.
    ///
    /// # Errors
    ///
    /// [`RedisOpenError`] says what is wrong and what to do.
    pub async fn open(self) -> Result<RedisStore, RedisOpenError> {
        let (connection, client) = match self.source {
            Source::Manager(manager) => (Connection::Single(manager), None),
            Source::Url(url) => {
                let client = Client::open(url).map_err(RedisOpenError::Url)?;
                (Connection::Single(manager(&client).await?), Some(client))
            }
            #[cfg(feature = "redis-cluster")]
            Source::Cluster(cluster) => (Connection::Cluster(cluster), None),
            #[cfg(feature = "redis-cluster")]
            Source::ClusterUrls(urls) => {
                let first = urls.first().cloned().unwrap_or_default();
                let client = Client::open(first).map_err(RedisOpenError::Url)?;
                let cluster = redis::cluster::ClusterClient::new(urls).map_err(RedisOpenError::Url)?;
                let connection = cluster.get_async_connection().await.map_err(RedisOpenError::Unreachable)?;
                (Connection::Cluster(connection), Some(client))
            }
        };
        let version = version(&connection).await?;
        if !self.allow_eviction {
            reject_eviction(&connection).await?;
        }
        let acknowledged = match (self.wait, &client, &connection) {
            (None, ..) => None,
            (Some((replicas, timeout)), Some(client), Connection::Single(_)) => {
                let mut connections = Vec::new();
                for _ in 0..WAITING_CONNECTIONS {
                    connections.push(manager(client).await?);
                }
                Some(Acknowledged::new(replicas, timeout, connections))
            }
            _ => return Err(RedisOpenError::CannotWait),
        };
        let channel = format!("{}ended", self.prefix);
        Ok(RedisStore(Arc::new(Inner {
            connection,
            acknowledged,
            listener: client.map(|client| Listener::new(client, channel.clone())),
            channel,
            index: RedisStore::index_of(&self.prefix),
            prefix: self.prefix,
            scripts: Scripts::new(version >= (7, 0)),
            claims_by_set: version >= (7, 0),
        })))
    }
}

/// The registry's time limit cuts a call off much earlier; this one is for those who call the store themselves.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

async fn manager(client: &Client) -> Result<ConnectionManager, RedisOpenError> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(Duration::from_secs(5)))
        .set_max_delay(Duration::from_secs(1));
    // Without this one's patience, which is for a server that was there before.
    let probe = client.get_multiplexed_async_connection().await;
    drop(probe.map_err(RedisOpenError::Unreachable)?);
    ConnectionManager::new_with_config(client.clone(), config).await.map_err(RedisOpenError::Unreachable)
}

/// The scripts need what Redis can since 6.2, and Valkey always.
const OLDEST: (u32, u32) = (6, 2);

async fn version(connection: &Connection) -> Result<(u32, u32), RedisOpenError> {
    let mut oldest_found = (u32::MAX, 0);
    for node in connection.nodes().await.map_err(RedisOpenError::Unreachable)? {
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let Ok(info) = connection.query_node::<String>(&node, info).await else {
            tracing::warn!(
                "the version of Redis cannot be read (INFO is forbidden); taken for {}.{}",
                OLDEST.0,
                OLDEST.1
            );
            return Ok(OLDEST);
        };
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
        let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        if found < OLDEST {
            return Err(RedisOpenError::TooOld { found: version.to_owned() });
        }
        oldest_found = oldest_found.min(found);
    }
    Ok(oldest_found)
}

async fn reject_eviction(connection: &Connection) -> Result<(), RedisOpenError> {
    for node in connection.nodes().await.map_err(RedisOpenError::Unreachable)? {
        let mut get = redis::cmd("CONFIG");
        get.arg("GET").arg("maxmemory-policy");
        match connection.query_node::<Vec<String>>(&node, get).await {
            Ok(answer) if answer.len() == 2 => {
                if answer[1] != "noeviction" {
                    return Err(RedisOpenError::Evicts { policy: answer[1].clone() });
                }
            }
            _ => {
                tracing::warn!(
                    "whether Redis evicts keys cannot be read (CONFIG is forbidden): see to it that maxmemory-policy is \
                     noeviction, since a record that is evicted is run again"
                );
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Why a [`RedisStore`] could not be opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RedisOpenError {
    /// The URL is malformed.
    #[error("this is no URL of a Redis server; write one such as `redis://user:password@host:6379/0`")]
    Url(#[source] RedisError),
    /// The server does not answer, or rejects the connection.
    #[error("Redis cannot be reached")]
    Unreachable(#[source] RedisError),
    /// It evicts keys when its memory is full.
    #[error(
        "Redis evicts keys when its memory is full (maxmemory-policy is {policy}), and a record that is evicted is run \
         again: set `maxmemory-policy noeviction`, or say `.allow_eviction()` where a second execution is harmless"
    )]
    #[non_exhaustive]
    Evicts {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// Its version lacks what the scripts need.
    #[error("Redis {found} is too old: version {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    #[non_exhaustive]
    TooOld {
        /// Its version.
        found: String,
    },
    /// `wait_replicas` needs connections of its own.
    #[error(
        "`wait_replicas` blocks connections, and needs some of its own: open the store by a URL of one server, not by a \
         connection and not by a Cluster"
    )]
    CannotWait,
}

impl RedisStore {
    /// Connects to the server with the default options.
    ///
    /// # Errors
    ///
    /// [`RedisOpenError`] says what is wrong and what to do.
    pub async fn connect(url: &str) -> Result<Self, RedisOpenError> {
        Self::builder(url).open().await
    }

    /// A store on the server of this URL, with options to follow.
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder::url(url)
    }

    /// A store on the application's own connection, with options to follow.
    ///
    /// The response timeout of the connection should not be shorter than the registry's `store_timeout`.
    pub fn with_connection(connection: ConnectionManager) -> RedisStoreBuilder {
        RedisStoreBuilder::manager(connection)
    }

    /// A store in a Cluster, with the URLs of some of its servers, and options to follow.
    #[cfg(feature = "redis-cluster")]
    pub fn cluster(urls: impl IntoIterator<Item = impl Into<String>>) -> RedisStoreBuilder {
        RedisStoreBuilder::cluster_urls(urls.into_iter().map(Into::into).collect())
    }

    /// A store on the application's own connection to a Cluster, with options to follow.
    #[cfg(feature = "redis-cluster")]
    pub fn with_cluster_connection(connection: redis::cluster_async::ClusterConnection) -> RedisStoreBuilder {
        RedisStoreBuilder::cluster(connection)
    }
}

impl fmt::Debug for RedisOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
