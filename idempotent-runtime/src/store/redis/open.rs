//! The opening of the store: options and connections.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use redis::aio::ConnectionManager;
use redis::auth::StreamingCredentialsProvider;
#[cfg(feature = "redis-cluster")]
use redis::cluster_async::ClusterConnection;
use tokio::sync::Notify;

use crate::store::given_back::RememberedTokens;
use crate::store::redis::address::Address;
use crate::store::redis::batched::InOneCall;
use crate::store::redis::batched_claim::InPipeline;
use crate::store::redis::batched_completion::InScript;
#[cfg(feature = "redis-cluster")]
use crate::store::redis::cluster::Resolver;
use crate::store::redis::connection::{Acknowledged, Connection};
use crate::store::redis::credentials::Credentials;
use crate::store::redis::eviction::EvictionWatch;
use crate::store::redis::index;
use crate::store::redis::inner::Inner;
use crate::store::redis::listener::Listener;
use crate::store::redis::names;
use crate::store::redis::open_error::RedisOpenError;
use crate::store::redis::origin::Origin;
use crate::store::redis::reconnecting::Reconnecting;
use crate::store::redis::rights;
use crate::store::redis::scripts::Scripts;
use crate::store::redis::server;
use crate::store::redis::store::RedisStore;
use crate::store::redis::unawaited::Unawaited;

/// The options of a [`RedisStore`].
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
    credentials: Option<Credentials>,
}

enum Source {
    Url(String),
    Manager(ConnectionManager),
    #[cfg(feature = "redis-cluster")]
    ClusterUrls(Vec<String>),
    #[cfg(feature = "redis-cluster")]
    Cluster(ClusterConnection),
}

/// The number of claims and completions that may wait for replicas at once. Each blocks a connection.
const WAITING_CONNECTIONS: usize = 16;

/// Shows no URL, because it can contain a password.
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
        Self { source, prefix: "idempotency:".to_owned(), allow_eviction: false, wait: None, credentials: None }
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
    pub(super) fn cluster(connection: ClusterConnection) -> Self {
        Self::new(Source::Cluster(connection))
    }

    /// Sets the prefix of all names of the store in Redis. The default is `idempotency:`. A colon is added if the
    /// prefix does not end with one.
    ///
    /// A store sees only names of its own prefix, even if another store's prefix begins with it.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = names::prefix(prefix.into());
        self
    }

    /// Accepts a server that evicts keys when its memory is full.
    ///
    /// **If a record is evicted, its retry runs the handler again.** Use this only if that is harmless.
    pub fn allow_eviction(mut self) -> Self {
        self.allow_eviction = true;
        self
    }

    /// Waits after each claim and each completion until `replicas` replicas have it, for at most `timeout`. If they do
    /// not have it by then, the request is rejected with 503, or the recording is tried again.
    ///
    /// This reduces the data that a failover can lose. It is no guarantee: Redis can promote a replica that has not
    /// received the last writes, and a claim that was written but not acknowledged in time can survive.
    pub fn wait_replicas(mut self, replicas: usize, timeout: Duration) -> Self {
        self.wait = Some((replicas, timeout));
        self
    }

    /// Asks `provider` for the user name and password whenever the store connects, instead of using those of the URL.
    /// The first item of the provider's stream is used to connect. Each later item authenticates again.
    ///
    /// With a provider, the store does not open over the application's own connection, because that connection
    /// authenticates by itself.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::fs;
    /// use std::pin::Pin;
    ///
    /// use futures_util::{Stream, stream};
    /// use idempotent_runtime::store::RedisStore;
    /// use redis::auth::{BasicAuth, StreamingCredentialsProvider};
    /// use redis::RedisResult;
    ///
    /// /// A password in a file, which is replaced from time to time.
    /// struct PasswordFile(&'static str);
    ///
    /// impl StreamingCredentialsProvider for PasswordFile {
    ///     fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
    ///         let password = fs::read_to_string(self.0).map_err(Into::into);
    ///         let credentials = password.map(|password| BasicAuth::new("app".to_owned(), password.trim().to_owned()));
    ///         Box::pin(stream::iter([credentials]))
    ///     }
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let provider = PasswordFile("/run/secrets/redis");
    /// let store = RedisStore::builder("rediss://cache:6379/").credentials_provider(provider).open().await?;
    /// # drop(store);
    /// # Ok(())
    /// # }
    /// ```
    pub fn credentials_provider(mut self, provider: impl StreamingCredentialsProvider + 'static) -> Self {
        self.credentials = Some(Credentials(Arc::new(provider)));
        self
    }

    /// Connects, checks the server, and tries every command that the store uses.
    ///
    /// # Errors
    ///
    /// [`RedisOpenError`] says what is wrong and what to do.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connections. A name on which the store tried its commands may stay on the server; no listing
    /// shows it.
    pub async fn open(self) -> Result<RedisStore, RedisOpenError> {
        let joined = Arc::new(Notify::new());
        let (connection, origin) = match self.source {
            Source::Manager(_) if self.credentials.is_some() => return Err(RedisOpenError::CannotAuthenticate),
            Source::Manager(manager) => (Connection::Single(Reconnecting::over(manager)), None),
            Source::Url(url) => {
                let origin = Origin::of(Address::of(&url)?, self.credentials)?;
                (Connection::Single(origin.connect().await?), Some(origin))
            }
            #[cfg(feature = "redis-cluster")]
            Source::Cluster(_) if self.credentials.is_some() => return Err(RedisOpenError::CannotAuthenticate),
            #[cfg(feature = "redis-cluster")]
            Source::Cluster(cluster) => (Connection::Cluster(cluster), None),
            #[cfg(feature = "redis-cluster")]
            Source::ClusterUrls(urls) => {
                let (connection, origin) = cluster_of(urls, self.credentials, Arc::clone(&joined)).await?;
                (connection, Some(origin))
            }
        };
        let version = server::version(&connection).await?;
        if !self.allow_eviction {
            server::reject_eviction(&connection).await?;
        }
        let acknowledged = acknowledged(self.wait, origin.is_some(), &connection)?;
        let (channel, index) = (format!("{}ended", self.prefix), index::name(&self.prefix));
        let claims = index::names_of_expiring(&self.prefix, !connection.sends_once());
        let (scripts, unawaited) = (Scripts::new(version >= (7, 0)), Unawaited::over(connection.clone()));
        let claiming = InPipeline::new(connection.clone(), unawaited.clone(), claims[0].clone());
        let completing = InScript {
            connection: connection.clone(),
            script: scripts.complete.clone(),
            channel: channel.clone(),
            index: index.clone(),
            claims: claims[0].clone(),
        };
        let inner = Inner {
            longest_value: server::longest_value(&connection).await?,
            operators: connection.beside().map_err(RedisOpenError::Unreachable)?,
            claims,
            unawaited,
            claiming: InOneCall::batcher(claiming),
            completing: InOneCall::batcher(completing),
            connection,
            acknowledged,
            listener: origin.map(|origin| Listener::new(origin, channel.clone())),
            channel,
            index,
            prefix: self.prefix,
            scripts,
            eviction: (!self.allow_eviction).then(|| EvictionWatch::new(joined)),
            claims_by_set: version >= (7, 0),
            sent_twice: RememberedTokens::default(),
        };
        rights::try_all(&inner).await?;
        Ok(RedisStore(Arc::new(inner)))
    }
}

/// Returns the connections that wait for replicas, if the builder asked for that.
fn acknowledged(
    wait: Option<(usize, Duration)>,
    has_address: bool,
    connection: &Connection,
) -> Result<Option<Acknowledged>, RedisOpenError> {
    match (wait, connection) {
        (None, _) => Ok(None),
        (Some((replicas, timeout)), Connection::Single(connection)) if has_address => {
            let connections: RedisResult<_> = (0..WAITING_CONNECTIONS).map(|_| connection.beside()).collect();
            Ok(Some(Acknowledged::new(replicas, timeout, connections.map_err(RedisOpenError::Unreachable)?)))
        }
        _ => Err(RedisOpenError::CannotWait),
    }
}

#[cfg(feature = "redis-cluster")]
async fn cluster_of(
    urls: Vec<String>,
    credentials: Option<Credentials>,
    joined: Arc<Notify>,
) -> Result<(Connection, Origin), RedisOpenError> {
    let first = Address::of(urls.first().map_or("", String::as_str))?;
    #[cfg(feature = "redis-sentinel")]
    if first.sentinels.is_some() {
        return Err(RedisOpenError::Malformed { problem: "a Cluster has no Sentinels: name some of its own servers" });
    }
    let servers: Result<Vec<_>, _> = urls.iter().map(|url| Address::of(url).map(|address| address.server)).collect();
    let (servers, certificates) = (servers?, first.certificates.clone());
    let origin = Origin::of(first.clone(), credentials)?;
    if !first.may_lead_anywhere() {
        let hosts = origin.hosts_of_cluster(&servers).await.map_err(RedisOpenError::Unreachable)?;
        hosts.iter().try_for_each(|host| first.check_host(host))?;
    }
    let resolver = Resolver::new(first, joined);
    Ok((Connection::Cluster(origin.connect_to_cluster(servers, &certificates, resolver).await?), origin))
}

impl RedisStore {
    /// Connects to the server with the default options.
    ///
    /// # Errors
    ///
    /// [`RedisOpenError`] says what is wrong and what to do.
    ///
    /// # Cancel safety
    ///
    /// The same as that of [`RedisStoreBuilder::open`].
    pub async fn connect(url: &str) -> Result<Self, RedisOpenError> {
        Self::builder(url).open().await
    }

    /// Returns a builder for a store on the server of this URL.
    ///
    /// | URL | server |
    /// |---|---|
    /// | `redis://user:password@host:6379/0` | one server, or an address behind which the master is |
    /// | `rediss://user:password@host:6379/0` | the same, by TLS (feature `tls`) |
    /// | `redis+sentinel://user:password@host1:26379,host2:26379/service/0` | the master of `service`, by what these Sentinels say (feature `redis-sentinel`) |
    /// | `rediss+sentinel://…` | the same, by TLS to the Sentinels and to the master |
    /// | `unix:///run/redis.sock?db=0&user=user&pass=password` | one server on this machine |
    ///
    /// | parameter | meaning |
    /// |---|---|
    /// | `cacert=PATH` | the authorities that sign servers, in PEM; those that the system trusts by default |
    /// | `cert=PATH`, `key=PATH` | the client's certificate and its private key, in PEM |
    /// | `tls=disable` | the connection to another machine may be in clear. Without it, only this machine is reached by `redis://` |
    /// | `sentinel_user=…`, `sentinel_password=…` | the credentials for the Sentinels; none by default |
    /// | `sentinel_tls=disable` | the Sentinels have no TLS |
    /// | `protocol=resp3` | the protocol; `resp2` by default |
    ///
    /// The files are those of `redis-cli --cacert --cert --key`. They are read when the store opens. An unknown
    /// parameter is an error. With TLS, the process gets ring as the default provider of rustls if it has none. An
    /// application with a provider of its own must install that before it opens the store.
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder::url(url)
    }

    /// Returns whether the server of this URL is part of a Cluster and has only a part of the keys. This is for tools
    /// that get a URL.
    ///
    /// # Errors
    ///
    /// [`RedisOpenError`] says what is wrong and what to do.
    ///
    /// # Cancel safety
    ///
    /// The call only reads. Dropping the future closes the connection.
    #[cfg(feature = "operate")]
    pub async fn is_in_cluster(url: &str) -> Result<bool, RedisOpenError> {
        let connection = Origin::of(Address::of(url)?, None)?.connect().await?;
        server::is_in_cluster(&Connection::Single(connection)).await
    }

    /// Returns a builder for a store on the application's own connection. The application decides whether that
    /// connection is encrypted.
    ///
    /// The response timeout of the connection should not be shorter than the registry's `store_timeout`. The settings
    /// of the connection decide how soon it gives up a network that drops all packets. A store that is opened by a URL
    /// does so within seconds.
    pub fn with_connection(connection: ConnectionManager) -> RedisStoreBuilder {
        RedisStoreBuilder::manager(connection)
    }

    /// Returns a builder for a store in a Cluster, with the URLs of some of its servers.
    #[cfg(feature = "redis-cluster")]
    pub fn cluster(urls: impl IntoIterator<Item = impl Into<String>>) -> RedisStoreBuilder {
        RedisStoreBuilder::cluster_urls(urls.into_iter().map(Into::into).collect())
    }

    /// Returns a builder for a store on the application's own connection to a Cluster.
    #[cfg(feature = "redis-cluster")]
    pub fn with_cluster_connection(connection: ClusterConnection) -> RedisStoreBuilder {
        RedisStoreBuilder::cluster(connection)
    }
}
