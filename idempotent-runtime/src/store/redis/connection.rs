//! The connections to one server or to a Cluster.

use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[cfg(feature = "redis-cluster")]
use redis::cluster_async::ClusterConnection;
use redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, from_redis_value,
};
use tokio::sync::Mutex;

use crate::store::columns::span_millis;
use crate::store::line::Call;
#[cfg(feature = "redis-cluster")]
use crate::store::redis::cluster;
use crate::store::redis::node::Node;
use crate::store::redis::reconnecting::{Reconnecting, Sent, may_succeed_at_once};
use crate::store::redis::scripts::Source;

#[derive(Clone)]
pub(super) enum Connection {
    Single(Reconnecting),
    #[cfg(feature = "redis-cluster")]
    Cluster(ClusterConnection),
}

impl Connection {
    /// Returns whether a call is sent only once. The client of a Cluster sends a call again when its connection breaks.
    /// Then an error describes only the last try, and an earlier try may have taken effect.
    pub(super) fn sends_once(&self) -> bool {
        matches!(self, Self::Single(_))
    }

    /// Returns a connection for slow queries, so that they do not delay the calls of this one.
    pub(super) fn beside(&self) -> RedisResult<Self> {
        match self {
            Self::Single(connection) => connection.beside().map(Self::Single),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => Ok(Self::Cluster(cluster.clone())),
        }
    }

    /// Returns whether the server has no free connections, like [`Reconnecting::is_at_connection_limit`]. Returns false for
    /// a Cluster, whose servers are not asked.
    pub(super) async fn is_at_connection_limit(&self) -> bool {
        match self {
            Self::Single(connection) => connection.is_at_connection_limit().await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => false,
        }
    }

    /// Sends a command that has the same effect if it is sent twice.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self.send(command).await {
            Err(error) if self.may_repeat(&error) => self.send(command).await.or(Err(error)),
            answer => answer,
        }
    }

    /// Runs a script by its hash, or by its text if the server does not know the hash yet. The script must have the
    /// same effect if it is sent twice.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Argument<'_>],
    ) -> RedisResult<T> {
        self.run_and_tell(script, keys, arguments, || ()).await
    }

    /// Does the same as [`run`](Self::run), and calls `before_second` before the script is sent again.
    pub(super) async fn run_and_tell<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Argument<'_>],
        before_second: impl FnOnce(),
    ) -> RedisResult<T> {
        match self.run_once(script, keys, arguments).await {
            Err(error) if self.may_repeat(&error) => {
                before_second();
                self.run_once(script, keys, arguments).await.or(Err(error))
            }
            answer => answer,
        }
    }

    /// Runs a script that is not sent again after an error, because its second answer would differ from the first one.
    pub(super) async fn run_once<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Argument<'_>],
    ) -> RedisResult<T> {
        match self.send(&invocation("EVALSHA", &script.hash, keys, arguments)).await {
            Err(error) if is_unknown_script(&error) => {
                self.send(&invocation("EVAL", &script.text, keys, arguments)).await
            }
            done => done,
        }
    }

    /// Sends commands in one round trip, and does not send them again.
    pub(super) async fn send_many<T: FromRedisValue>(&self, commands: &Pipeline) -> RedisResult<T> {
        match self {
            Self::Single(connection) => Ok(from_redis_value(connection.send(Sent::Many(commands)).await?)?),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => commands.query_async(&mut cluster.clone()).await,
        }
    }

    async fn send<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Single(connection) => Ok(from_redis_value(connection.send(Sent::One(command)).await?)?),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => command.query_async(&mut cluster.clone()).await,
        }
    }

    /// Returns whether the call may be sent again at once. If the second try fails too, the first error is returned.
    pub(super) fn may_repeat(&self, error: &RedisError) -> bool {
        self.sends_once() && may_succeed_at_once(error)
    }

    /// Runs the script for many keys in one round trip. Returns `None` if each key may be on a different server.
    pub(super) async fn run_many<T: FromRedisValue>(
        &self,
        script: &Source,
        runs: &[(Vec<u8>, Vec<Argument<'_>>)],
    ) -> Option<RedisResult<Vec<T>>> {
        if !self.sends_once() {
            return None;
        }
        let mut all = redis::pipe();
        for (key, arguments) in runs {
            all.add_command(invocation("EVALSHA", &script.hash, slice::from_ref(key), arguments));
        }
        Some(self.send_many(&all).await)
    }

    /// Returns all servers that have keys of their own.
    #[cfg_attr(not(feature = "redis-cluster"), expect(clippy::unused_async, reason = "a Cluster is asked"))]
    pub(super) async fn nodes(&self) -> RedisResult<Vec<Node>> {
        match self {
            Self::Single(_) => Ok(vec![None]),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster::masters(cluster).await,
        }
    }

    pub(super) async fn query_node<T: FromRedisValue>(&self, node: &Node, command: Cmd) -> RedisResult<T> {
        match (self, node) {
            #[cfg(feature = "redis-cluster")]
            (Self::Cluster(cluster), Some(node)) => {
                Ok(redis::from_redis_value(cluster::query_node(cluster, node.clone(), command).await?)?)
            }
            _ => self.query(&command).await,
        }
    }
}

/// An argument of a script.
#[derive(Clone, Copy)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Millis(u64),
}

impl Argument<'_> {
    /// Creates an argument in milliseconds.
    pub(super) fn span(span: Duration) -> Self {
        Self::Millis(span_millis(span).unsigned_abs())
    }
}

/// The largest number of digits of an argument.
const DIGITS: usize = 20;

fn invocation(command: &str, script: &str, keys: &[impl AsRef<[u8]>], arguments: &[Argument<'_>]) -> Cmd {
    let texts = arguments.iter().map(|argument| if let Argument::Text(text) = argument { text.len() } else { DIGITS });
    let bytes = keys.iter().map(|key| key.as_ref().len()).chain(texts).sum::<usize>();
    let mut invocation =
        Cmd::with_capacity(3 + keys.len() + arguments.len(), command.len() + script.len() + DIGITS + bytes);
    invocation.arg(command).arg(script).arg(keys.len());
    for key in keys {
        invocation.arg(key.as_ref());
    }
    for argument in arguments {
        match argument {
            Argument::Text(text) => invocation.arg(*text),
            Argument::Millis(millis) => invocation.arg(*millis),
        };
    }
    invocation
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// The connections on which `WAIT` may block without blocking other commands.
pub(super) struct Acknowledged {
    pub(super) replicas: usize,
    pub(super) timeout: Duration,
    connections: Vec<Mutex<Reconnecting>>,
    next: AtomicUsize,
}

impl Acknowledged {
    pub(super) fn new(replicas: usize, timeout: Duration, connections: Vec<Reconnecting>) -> Self {
        let connections = connections.into_iter().map(Mutex::new).collect();
        Self { replicas, timeout, connections, next: AtomicUsize::new(0) }
    }

    /// Returns the script's answer, and the number of replicas that have its writes. Calls `before_second` before the
    /// script is sent again.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Argument<'_>],
        before_second: impl FnOnce(),
    ) -> RedisResult<(T, usize)> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let call = Call::hold_back();
        let connection = self.connections[index].lock().await;
        call.send();
        // For `WAIT`, a timeout of 0 means forever.
        let millis = span_millis(self.timeout).max(1);
        let mut wait = redis::cmd("WAIT");
        wait.arg(i32::try_from(self.replicas).unwrap_or(i32::MAX)).arg(millis);
        let send = async |command: &str, text: &str| {
            let mut both = redis::pipe();
            both.add_command(invocation(command, text, keys, arguments)).add_command(wait.clone());
            connection.send(Sent::Many(&both)).await
        };
        let once = async || -> RedisResult<Value> {
            match send("EVALSHA", &script.hash).await {
                Err(error) if is_unknown_script(&error) => send("EVAL", &script.text).await,
                done => done,
            }
        };
        let answer = match once().await {
            Err(error) if may_succeed_at_once(&error) => {
                before_second();
                once().await.or(Err(error))
            }
            answer => answer,
        };
        Ok(from_redis_value(answer?)?)
    }
}
