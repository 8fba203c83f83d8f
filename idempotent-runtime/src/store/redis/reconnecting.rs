//! A connection to one server, which is replaced when its answers, or missing answers, show that it leads nowhere.
//!
//! The client's own manager reconnects when a connection breaks. But it keeps a connection to a master that was
//! demoted, and a connection whose packets are dropped. Then the manager is replaced as a whole. A connection to a
//! master that Sentinels name has no manager.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::store::redis::connection_limit::ConnectionLimit;
use crate::store::redis::wire::{Way, Wire};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// The time without any answer after which the next calls use a new connection.
const SILENCE: Duration = Duration::from_secs(1);

/// The shortest wait that counts. A call that is dropped earlier shows nothing about its connection.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The time for which a connection that never answered may still be opening, within the limits of
/// `ConnectionManagerConfig`.
const MAY_BE_OPENING: Duration = Duration::from_secs(4);

/// The pauses before a connection that leads nowhere is replaced again.
const BETWEEN_CONNECTIONS: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

#[derive(Clone)]
pub(super) struct Reconnecting(Arc<Inner>);

struct Inner {
    /// The way to make a new connection. The application's own connection has none.
    way: Option<Way>,
    silence: Arc<Silence>,
    current: Mutex<Current>,
    connection_limit: ConnectionLimit,
}

/// The time at which the last call was sent that had no answer for long. All connections to one server share it: if the
/// packets of one are dropped, so are those of the others, which need not find out one by one.
#[derive(Default)]
struct Silence(Mutex<Option<Instant>>);

struct Current {
    line: Arc<Line>,
    backoff: Backoff,
    /// The time before which the connection is not replaced.
    kept_until: Instant,
}

struct Line {
    wire: Wire,
    made_at: Instant,
    answered_at: Mutex<Option<Instant>>,
    is_suspect: AtomicBool,
}

/// The commands that are sent at once.
#[derive(Clone, Copy)]
pub(super) enum Sent<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline),
}

impl Sent<'_> {
    async fn over(self, connection: &mut impl ConnectionLike) -> RedisResult<Value> {
        match self {
            Self::One(command) => command.query_async(connection).await,
            Self::Many(commands) => commands.query_async(connection).await,
        }
    }
}

impl Reconnecting {
    /// Begins with this connection.
    pub(super) fn to(way: Way, wire: Wire) -> Self {
        Self::new(wire, Some(way), Arc::default())
    }

    /// Uses the application's own connection.
    pub(super) fn over(manager: ConnectionManager) -> Self {
        Self::new(Wire::Managed(manager), None, Arc::default())
    }

    fn new(wire: Wire, way: Option<Way>, silence: Arc<Silence>) -> Self {
        let current = Current { line: Line::new(wire), backoff: BETWEEN_CONNECTIONS, kept_until: Instant::now() };
        Self(Arc::new(Inner {
            way,
            silence,
            current: Mutex::new(current),
            connection_limit: ConnectionLimit::default(),
        }))
    }

    /// Returns another connection to the same server, which is made when it is needed. Returns the same connection if
    /// it is the application's.
    pub(super) fn beside(&self) -> RedisResult<Self> {
        let Some(way) = &self.0.way else { return Ok(self.clone()) };
        Ok(Self::new(way.wire()?, Some(way.clone()), Arc::clone(&self.0.silence)))
    }

    /// Sends the commands once.
    pub(super) async fn send(&self, sent: Sent<'_>) -> RedisResult<Value> {
        let line = self.line();
        let mut call = Unanswered { line: &line, silence: &self.0.silence, since: Instant::now(), is_over: false };
        let mut asking = pin!(line.send(sent));
        let answer = if let Some(answer) = Deadline::after(SILENCE).bound(&mut asking).await {
            answer
        } else {
            // This call may still get its answer.
            call.suspect();
            asking.await
        };
        match &answer {
            Err(error) if error.is_timeout() => return answer,
            // A manager reconnects by itself. A line without a manager is already marked as suspect.
            Err(error) if error.is_io_error() => {}
            Err(error) if leads_nowhere(error) => line.is_suspect.store(true, Ordering::SeqCst),
            _ => *lock(&line.answered_at) = Some(Instant::now()),
        }
        call.is_over = true;
        answer
    }

    /// Returns whether the server rejects connections because it has too many. Returns false if the connection is the
    /// application's, because its address is not known.
    pub(super) async fn is_at_connection_limit(&self) -> bool {
        let Some(way) = &self.0.way else { return false };
        self.0.connection_limit.is_reached(way.address()).await
    }

    /// Returns the connection for the next call.
    fn line(&self) -> Arc<Line> {
        let mut current = lock(&self.0.current);
        let is_silent = lock(&self.0.silence.0).is_some_and(|since| current.line.is_silent_since(since));
        let is_suspect = is_silent || current.line.is_suspect.load(Ordering::SeqCst);
        let is_outdated = current.line.wire.is_outdated();
        if !is_outdated && (!is_suspect || current.kept_until > Instant::now()) {
            return Arc::clone(&current.line);
        }
        if lock(&current.line.answered_at).is_some() {
            current.backoff = BETWEEN_CONNECTIONS;
        }
        current.kept_until = Instant::now() + current.backoff.advance();
        let Some(way) = &self.0.way else {
            if is_silent {
                return Arc::clone(&current.line);
            }
            // The manager of the connection connects again when the server has closed it.
            let line = Arc::clone(&current.line);
            line.is_suspect.store(false, Ordering::SeqCst);
            crate::sync::tokio::spawn(async move { line.send(Sent::One(&redis::cmd("QUIT"))).await });
            return Arc::clone(&current.line);
        };
        if let Ok(wire) = way.wire() {
            current.line = Line::new(wire);
        }
        Arc::clone(&current.line)
    }
}

impl Line {
    fn new(wire: Wire) -> Arc<Self> {
        let made_at = Instant::now();
        Arc::new(Self { wire, made_at, answered_at: Mutex::new(None), is_suspect: AtomicBool::new(false) })
    }

    async fn send(&self, sent: Sent<'_>) -> RedisResult<Value> {
        match &self.wire {
            Wire::Managed(manager) => sent.over(&mut manager.clone()).await,
            #[cfg(feature = "redis-sentinel")]
            Wire::Master(master) => {
                let suspect = || self.is_suspect.store(true, Ordering::SeqCst);
                let mut master = master.connection.clone().await.inspect_err(|_| suspect())?;
                // This connection has no manager that connects it again.
                let is_over = |error: &RedisError| error.is_io_error() || error.is_unrecoverable_error();
                sent.over(&mut master).await.inspect_err(|error| {
                    if is_over(error) {
                        suspect();
                    }
                })
            }
        }
    }

    /// Returns whether the connection existed at that time and has answered no call since.
    fn is_silent_since(&self, since: Instant) -> bool {
        match *lock(&self.answered_at) {
            Some(answered_at) => answered_at < since,
            // The connection may still be opening.
            None => self.made_at < since && self.made_at.elapsed() > MAY_BE_OPENING,
        }
    }
}

/// A call that its caller may drop.
struct Unanswered<'a> {
    line: &'a Line,
    silence: &'a Silence,
    since: Instant,
    is_over: bool,
}

impl Unanswered<'_> {
    fn suspect(&self) {
        if self.line.is_silent_since(self.since) {
            self.line.is_suspect.store(true, Ordering::SeqCst);
            *lock(&self.silence.0) = Some(self.since);
        }
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        // The next call replaces the connection, because no runtime may be left here.
        if !self.is_over && self.since.elapsed() >= SHORTEST_WAIT {
            self.suspect();
        }
    }
}

/// Returns whether the server takes no calls at present, so the address may lead to another server by now. The call had
/// no effect.
fn leads_nowhere(error: &RedisError) -> bool {
    const KINDS: [ServerErrorKind; 3] =
        [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown, ServerErrorKind::BusyLoading];
    match error.kind() {
        ErrorKind::Server(kind) if KINDS.contains(&kind) => true,
        // Before version 7, the error of a command in a script is part of a longer text.
        _ => error.to_string().contains("READONLY "),
    }
}

/// Returns whether the same call may succeed at once on another connection, because this one was closed or leads
/// nowhere.
pub(super) fn may_succeed_at_once(error: &RedisError) -> bool {
    (error.is_connection_dropped() && !error.is_connection_refusal()) || leads_nowhere(error)
}
