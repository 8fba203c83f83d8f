//! Why a store could not be opened, and what to do.

use std::fmt;
use std::io;

use redis::RedisError;

use crate::error_text::with_causes;

/// Why a [`RedisStore`](crate::store::RedisStore) could not be opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RedisOpenError {
    /// The URL is malformed.
    #[error("this is no URL of a Redis server; write one such as `redis://user:password@host:6379/0`")]
    Url(#[source] RedisError),
    /// The URL says what the store cannot do.
    #[error("the URL of Redis cannot be used: {problem}")]
    #[non_exhaustive]
    Malformed {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The URL asks for TLS, and the application is built without it.
    #[error(
        "the URL of Redis asks for TLS, and this program is built without it: enable feature `tls` of idempotent-runtime"
    )]
    Tls,
    /// The URL names Sentinels, and the application is built without support for them.
    #[error(
        "the URL of Redis names Sentinels, and this program is built without support for them: enable feature `redis-sentinel` of \
         idempotent-runtime"
    )]
    NoSentinels,
    /// The server is on another machine, and the connection to it is not encrypted.
    #[error(
        "the password and every record would be sent in clear to Redis at {host}: write `rediss://` (feature `tls`), or add \
         `?tls=disable` to the URL if you trust the network"
    )]
    #[non_exhaustive]
    InClear {
        /// The host.
        host: String,
    },
    /// A file that the URL names is not what it should be.
    #[error("the file `{path}` of the parameter `{parameter}` cannot be used")]
    #[non_exhaustive]
    Certificate {
        /// `cacert`, `cert` or `key`.
        parameter: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server does not answer, or rejects the connection.
    #[error("Redis cannot be reached{}", remedy(.0))]
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
    /// Whether it evicts keys cannot be read.
    #[error(
        "whether Redis evicts keys cannot be read (`INFO memory` and `CONFIG GET maxmemory-policy` are both forbidden), and \
         a record that is evicted is run again: grant `+info`, or say `.allow_eviction()` where maxmemory-policy is \
         noeviction or a second execution is harmless"
    )]
    UnknownEviction(#[source] RedisError),
    /// The user may not do what the store does.
    #[error("the user may not use `{command}` as this store does: grant its rights with `{grant}`")]
    #[non_exhaustive]
    Forbidden {
        /// The command that the server rejects.
        command: &'static str,
        /// A command for an administrator that grants all rights of the store, where `USER` is the user's name.
        grant: String,
        /// What the server says.
        #[source]
        source: RedisError,
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
    /// A credentials provider is asked when the store connects.
    #[error("`credentials_provider` needs a store that connects by itself: open it by a URL, not by a connection")]
    CannotAuthenticate,
}

/// The scripts need what Redis can since 6.2, and Valkey always.
pub(super) const OLDEST: (u32, u32) = (6, 2);

/// rustls tells what is wrong with a certificate, and not which parameter of the URL is about it.
fn remedy(error: &RedisError) -> &'static str {
    if error.to_string().contains("invalid peer certificate") {
        ", because its certificate is not accepted: name the authority that signed it with `cacert=PATH`, and write the host \
         that it is valid for"
    } else {
        ""
    }
}

impl fmt::Debug for RedisOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
