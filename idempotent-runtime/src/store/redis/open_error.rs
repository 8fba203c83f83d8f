//! The errors of opening a store, with remedies.

use std::fmt;
use std::io;

use redis::RedisError;

use crate::error_text::with_causes;

/// The reason why a [`RedisStore`](crate::store::RedisStore) could not be opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RedisOpenError {
    /// The URL is malformed.
    #[error("this is no URL of a Redis server; write one such as `redis://user:password@host:6379/0`")]
    Url(#[source] RedisError),
    /// The URL asks for something that the store cannot do.
    #[error("the URL of Redis cannot be used: {problem}")]
    #[non_exhaustive]
    Malformed {
        /// The problem.
        problem: &'static str,
    },
    /// The URL asks for TLS, but the application is built without it.
    #[error(
        "the URL of Redis asks for TLS, and this program is built without it: enable feature `tls` of idempotent-runtime"
    )]
    Tls,
    /// The URL names Sentinels, but the application is built without support for them.
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
    /// A file that the URL names cannot be used.
    #[error("the file `{path}` of the parameter `{parameter}` cannot be used")]
    #[non_exhaustive]
    Certificate {
        /// The parameter: `cacert`, `cert` or `key`.
        parameter: &'static str,
        /// The path of the file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server does not answer, or rejects the connection.
    #[error("Redis cannot be reached{}", remedy(.0))]
    Unreachable(#[source] RedisError),
    /// The server evicts keys when its memory is full.
    #[error(
        "Redis evicts keys when its memory is full (maxmemory-policy is {policy}), and a record that is evicted is run \
         again: set `maxmemory-policy noeviction`, or say `.allow_eviction()` where a second execution is harmless"
    )]
    #[non_exhaustive]
    Evicts {
        /// The `maxmemory-policy` of the server.
        policy: String,
    },
    /// The server does not allow to read whether it evicts keys.
    #[error(
        "it is unknown whether Redis evicts keys (`INFO memory` and `CONFIG GET maxmemory-policy` are both forbidden), and \
         a request whose record is evicted runs again: grant `+info`, or say `.allow_eviction()` where maxmemory-policy is \
         noeviction or a second execution is harmless"
    )]
    UnknownEviction(#[source] RedisError),
    /// The user lacks a right that the store needs.
    #[error("the user may not use `{command}` as this store does: grant its rights with `{grant}`")]
    #[non_exhaustive]
    Forbidden {
        /// The command that the server rejects.
        command: &'static str,
        /// A command for an administrator that grants all rights of the store, where `USER` is the user's name.
        grant: String,
        /// The error of the server.
        #[source]
        source: RedisError,
    },
    /// The version of the server lacks features that the scripts need.
    #[error("Redis {found} is too old: version {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    #[non_exhaustive]
    TooOld {
        /// The version of the server.
        found: String,
    },
    /// `wait_replicas` needs connections of its own.
    #[error(
        "`wait_replicas` blocks connections, and needs some of its own: open the store by a URL of one server, not by a \
         connection and not by a Cluster"
    )]
    CannotWait,
    /// A credentials provider needs a store that connects by itself.
    #[error("`credentials_provider` needs a store that connects by itself: open it by a URL, not by a connection")]
    CannotAuthenticate,
}

/// The oldest version with all features that the scripts need. Every version of Valkey has them.
pub(super) const OLDEST: (u32, u32) = (6, 2);

/// Returns the remedy for a rejected certificate. The error of rustls does not name the parameter of the URL.
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
