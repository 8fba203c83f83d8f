//! The making of connections, and their handling when they break.

use std::sync::Arc;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionAddr, RedisResult};

#[cfg(feature = "redis-sentinel")]
use crate::store::redis::sentinel::{Master, Watched};

/// The way in which connections are made.
#[derive(Clone)]
pub(super) enum Way {
    Server(Arc<(Client, ConnectionManagerConfig)>),
    #[cfg(feature = "redis-sentinel")]
    Sentinels(Arc<Watched>),
}

/// A connection that is made when it is needed.
#[derive(Clone)]
pub(super) enum Wire {
    /// A connection that reconnects by itself, to the same address.
    Managed(ConnectionManager),
    /// A connection that is replaced when it breaks.
    #[cfg(feature = "redis-sentinel")]
    Master(Master),
}

impl Wire {
    /// Returns whether the connection may lead to a former master.
    pub(super) fn is_outdated(&self) -> bool {
        match self {
            Self::Managed(_) => false,
            #[cfg(feature = "redis-sentinel")]
            Self::Master(master) => master.is_outdated(),
        }
    }
}

impl Way {
    pub(super) fn wire(&self) -> RedisResult<Wire> {
        match self {
            Self::Server(server) => {
                let (client, config) = (**server).clone();
                ConnectionManager::new_lazy_with_config(client, config).map(Wire::Managed)
            }
            #[cfg(feature = "redis-sentinel")]
            Self::Sentinels(watched) => Ok(Wire::Master(watched.connect())),
        }
    }

    /// Returns the address to which the next connection would lead.
    #[cfg_attr(not(feature = "redis-sentinel"), allow(clippy::unused_async, reason = "only Sentinels are asked"))]
    pub(super) async fn address(&self) -> RedisResult<ConnectionAddr> {
        match self {
            Self::Server(server) => Ok(server.0.get_connection_info().addr().clone()),
            #[cfg(feature = "redis-sentinel")]
            Self::Sentinels(watched) => Ok(watched.master().await?.get_connection_info().addr().clone()),
        }
    }

    /// Makes a connection and waits until it is established.
    pub(super) async fn connected_wire(&self) -> RedisResult<Wire> {
        match self {
            Self::Server(server) => {
                let (client, config) = (**server).clone();
                ConnectionManager::new_with_config(client, config).await.map(Wire::Managed)
            }
            #[cfg(feature = "redis-sentinel")]
            Self::Sentinels(watched) => {
                let master = watched.connect();
                master.connection.clone().await?;
                Ok(Wire::Master(master))
            }
        }
    }
}
