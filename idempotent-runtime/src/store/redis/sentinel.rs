//! The master that Sentinels name. They are asked before each connection.
//!
//! The client's own manager reconnects to the same address. A former master may restart there before its Sentinels have
//! demoted it. It would then accept writes that are lost. The same happens with a master that was paused, because its
//! connections stay open. So the store subscribes to a Sentinel, which reports when the master does not answer and when
//! another one was promoted.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared, join_all};
use futures_util::{FutureExt as _, StreamExt as _};
use redis::aio::{MultiplexedConnection, PubSub};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult};

use crate::background_task::BackgroundTask;
use crate::reconnect::{Subscription, keep_connected};
use crate::store::redis::address::{Address, Sentinels};
use crate::store::redis::credentials::Credentials;
use crate::store::redis::open_error::RedisOpenError;
use crate::store::redis::tcp::tcp_settings;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// A connection to the master at one moment, which is made once.
#[derive(Clone)]
pub(super) struct Master {
    pub(super) connection: Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>,
    watched: Arc<Watched>,
    changes_before: usize,
}

impl Master {
    /// Returns whether the master was down since, or another one was promoted. While the task that hears of that stands
    /// still, both may have happened.
    pub(super) fn is_outdated(&self) -> bool {
        !self.watched.listener.is_alive() || self.watched.changes.load(Ordering::SeqCst) != self.changes_before
    }
}

pub(super) struct Watched {
    changes: Arc<AtomicUsize>,
    listener: BackgroundTask,
    address: Address,
    sentinels: Sentinels,
    credentials: Option<Credentials>,
    config: AsyncConnectionConfig,
}

impl Watched {
    pub(super) fn new(
        address: Address,
        sentinels: Sentinels,
        credentials: Option<Credentials>,
        config: AsyncConnectionConfig,
    ) -> Self {
        let (changes, listener) = (Arc::default(), BackgroundTask::default());
        Self { changes, listener, address, sentinels, credentials, config }
    }

    /// Connects to the master of the moment of the first poll. The attempt continues when its callers no longer wait.
    pub(super) fn connect(self: &Arc<Self>) -> Master {
        let watched = Arc::clone(self);
        let connecting =
            async move { watched.master().await?.get_multiplexed_async_connection_with_config(&watched.config).await };
        let changes_before = self.changes.load(Ordering::SeqCst);
        let changes = || Changes { sentinels: self.sentinels.clone(), count: Arc::clone(&self.changes) };
        self.listener.ensure(|| keep_connected(changes()));
        let attempt = async move {
            let attempt = crate::sync::tokio::spawn(connecting).await;
            attempt.unwrap_or_else(|error| Err(io::Error::other(error).into()))
        };
        Master { connection: attempt.boxed().shared(), watched: Arc::clone(self), changes_before }
    }

    /// Returns the master that the first answering Sentinel names, if that server says that it is a master.
    pub(super) async fn master(&self) -> RedisResult<Client> {
        let found = self.lookup().await?.build()?.async_get_client().await?;
        let address = found.get_connection_info().addr().clone();
        self.address.check(&address).map_err(|error| in_clear(&error))?;
        Client::open(self.address.server.clone().set_addr(address))
    }

    /// Returns the Sentinels to ask. If nothing may be sent in clear, these are the Sentinels that name a master on
    /// this machine, because the lookup sends the password to the master before it reports the address.
    async fn trusted(&self) -> RedisResult<Vec<ConnectionAddr>> {
        let all = &self.sentinels.addresses;
        if self.address.may_lead_anywhere() {
            return Ok(all.iter().map(|sentinel| sentinel.addr().clone()).collect());
        }
        let (mut trusted, mut failure) = (Vec::new(), None);
        let named = join_all(all.iter().map(|sentinel| hosts(sentinel.clone(), &self.sentinels))).await;
        for (sentinel, named) in all.iter().zip(named) {
            let check = |host: String| self.address.check_host(&host).map_err(|error| in_clear(&error));
            match named.and_then(|hosts| hosts.into_iter().try_for_each(check)) {
                Ok(()) => trusted.push(sentinel.addr().clone()),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if trusted.is_empty() => Err(error),
            _ => Ok(trusted),
        }
    }

    async fn lookup(&self) -> RedisResult<SentinelClientBuilder> {
        let sentinels = self.trusted().await?;
        let mut lookup = SentinelClientBuilder::new(sentinels, &self.sentinels.service, SentinelServerType::Master)?
            .set_client_to_sentinel_tcp_settings(tcp_settings())
            .set_client_to_redis_tcp_settings(tcp_settings());
        if let Some(user) = &self.sentinels.user {
            lookup = lookup.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &self.sentinels.password {
            lookup = lookup.set_client_to_sentinel_password(password);
        }
        // The lookup asks the server for its role.
        let server = self.address.server.redis_settings().clone();
        let server = match &self.credentials {
            Some(credentials) => credentials.apply_to(server).await?,
            None => server,
        };
        lookup = lookup.set_client_to_redis_db(server.db()).set_client_to_redis_protocol(server.protocol());
        if let Some(user) = server.username() {
            lookup = lookup.set_client_to_redis_username(user);
        }
        if let Some(password) = server.password() {
            lookup = lookup.set_client_to_redis_password(password);
        }
        if matches!(self.address.server.addr(), ConnectionAddr::TcpTls { .. }) {
            lookup = lookup.set_client_to_redis_tls_mode(redis::TlsMode::Secure);
            #[cfg(feature = "tls")]
            if let Some(certificates) = self.address.certificates.get() {
                lookup = lookup.set_client_to_redis_certificates(certificates);
            }
        }
        Ok(lookup)
    }
}

/// Counts the messages of the Sentinels about the master.
struct Changes {
    sentinels: Sentinels,
    count: Arc<AtomicUsize>,
}

impl Subscription for Changes {
    async fn receive(&self) -> bool {
        let mut was_connected = false;
        for address in &self.sentinels.addresses {
            let Ok(mut subscription) = subscribe(address.clone(), &self.sentinels).await else { continue };
            was_connected = true;
            // The master may have changed before the subscription began.
            self.count.fetch_add(1, Ordering::SeqCst);
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                let text: String = message.get_payload().unwrap_or_default();
                if concerns(&text, &self.sentinels.service) {
                    self.count.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        was_connected
    }
}

fn client(address: ConnectionInfo, sentinels: &Sentinels) -> RedisResult<Client> {
    let mut settings = address.redis_settings().clone();
    if let Some(user) = &sentinels.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &sentinels.password {
        settings = settings.set_password(password);
    }
    Client::open(address.set_redis_settings(settings))
}

fn in_clear(error: &RedisOpenError) -> RedisError {
    let told = error.to_string();
    RedisError::from((ErrorKind::InvalidClientConfig, "the master would be used in clear", told))
}

/// The time limit for the answer of a Sentinel.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Returns the hosts that this Sentinel names for the master.
async fn hosts(address: ConnectionInfo, sentinels: &Sentinels) -> RedisResult<Vec<String>> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWERED_WITHIN))
        .set_response_timeout(Some(ANSWERED_WITHIN));
    let mut sentinel = client(address, sentinels)?.get_multiplexed_async_connection_with_config(&config).await?;
    let masters: Vec<HashMap<String, String>> =
        redis::cmd("SENTINEL").arg("MASTERS").query_async(&mut sentinel).await?;
    let ours = masters.into_iter().filter(|master| master.get("name") == Some(&sentinels.service));
    Ok(ours.filter_map(|mut master| master.remove("ip")).collect())
}

async fn subscribe(address: ConnectionInfo, sentinels: &Sentinels) -> RedisResult<PubSub> {
    let mut subscription = client(address, sentinels)?.get_async_pubsub().await?;
    subscription.subscribe("+switch-master").await?;
    subscription.subscribe("+sdown").await?;
    Ok(subscription)
}

/// Returns whether the message is about the master of this service. `SERVICE …` names the former and the new master.
/// `master SERVICE …` names a master that does not answer.
fn concerns(message: &str, service: &str) -> bool {
    let mut words = message.split(' ');
    match words.next() {
        Some("master") if words.next() == Some(service) => true,
        first => first == Some(service),
    }
}
