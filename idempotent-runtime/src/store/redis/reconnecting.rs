//! One server's connection, which is replaced when its answers, or their absence, show that it leads nowhere.
//!
//! The client's own manager reconnects when a connection breaks. It keeps one to a master that was demoted, and one whose
//! packets are dropped: its manager is replaced as a whole then. A connection to a master that Sentinels name has no manager.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::store::redis::places::Places;
use crate::store::redis::wire::{Way, Wire};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// If no call gets an answer for this long, the next calls use a new connection.
const SILENCE: Duration = Duration::from_secs(1);

/// A call that is dropped earlier says nothing of its connection.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// A connection that never answered may still be under way, within the limits of `ConnectionManagerConfig`.
const UNDER_WAY: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub(super) struct Reconnecting(Arc<Inner>);

struct Inner {
    /// The application's own connection has none.
    way: Option<Way>,
    silence: Arc<Silence>,
    current: Mutex<Current>,
    places: Places,
}

/// When the last call was sent that had no answer for long: what drops the packets of one connection drops those of others to
/// the same server, which need not find it out one by one.
#[derive(Default)]
struct Silence(Mutex<Option<Instant>>);

struct Current {
    line: Arc<Line>,
    backoff: Backoff,
    /// Not replaced before this.
    kept_until: Instant,
}

struct Line {
    wire: Wire,
    made_at: Instant,
    answered_at: Mutex<Option<Instant>>,
    is_suspect: AtomicBool,
}

/// What goes out in one go.
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

    /// Over the application's own connection.
    pub(super) fn over(manager: ConnectionManager) -> Self {
        Self::new(Wire::Managed(manager), None, Arc::default())
    }

    fn new(wire: Wire, way: Option<Way>, silence: Arc<Silence>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let current = Current { line: Line::new(wire), backoff, kept_until: Instant::now() };
        Self(Arc::new(Inner { way, silence, current: Mutex::new(current), places: Places::default() }))
    }

    /// Another connection to the same server, made when it is needed; the same one where it is the application's.
    pub(super) fn beside(&self) -> RedisResult<Self> {
        let Some(way) = &self.0.way else { return Ok(self.clone()) };
        Ok(Self::new(way.wire()?, Some(way.clone()), Arc::clone(&self.0.silence)))
    }

    /// Sends it once.
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
            // A manager reconnects by itself, and another line is suspect already.
            Err(error) if error.is_io_error() => {}
            Err(error) if leads_nowhere(error) => line.is_suspect.store(true, Ordering::SeqCst),
            _ => *lock(&line.answered_at) = Some(Instant::now()),
        }
        call.is_over = true;
        answer
    }

    /// Whether the server rejects connections because it has too many; not known where the connection is the application's.
    pub(super) async fn is_without_places(&self) -> bool {
        let Some(way) = &self.0.way else { return false };
        match way.address().await {
            Ok(address) => self.0.places.are_taken(&address).await,
            Err(_) => false,
        }
    }

    /// The connection for the next call.
    fn line(&self) -> Arc<Line> {
        let mut current = lock(&self.0.current);
        let is_silent = lock(&self.0.silence.0).is_some_and(|since| current.line.is_silent_since(since));
        let is_suspect = is_silent || current.line.is_suspect.load(Ordering::SeqCst);
        let is_outdated = current.line.wire.is_outdated();
        if !is_outdated && (!is_suspect || current.kept_until > Instant::now()) {
            return Arc::clone(&current.line);
        }
        if lock(&current.line.answered_at).is_some() {
            current.backoff.reset();
        }
        current.kept_until = Instant::now() + current.backoff.advance();
        let Some(way) = &self.0.way else {
            if is_silent {
                return Arc::clone(&current.line);
            }
            // Its manager connects again when the server has closed it.
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
                // Nothing connects it again.
                let is_over = |error: &RedisError| error.is_io_error() || error.is_unrecoverable_error();
                sent.over(&mut master).await.inspect_err(|error| {
                    if is_over(error) {
                        suspect();
                    }
                })
            }
        }
    }

    /// Whether it existed then and has answered no call since.
    fn is_silent_since(&self, since: Instant) -> bool {
        match *lock(&self.answered_at) {
            Some(answered_at) => answered_at < since,
            // It may still be under way.
            None => self.made_at < since && self.made_at.elapsed() > UNDER_WAY,
        }
    }
}

/// A call, which its caller may drop.
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
        // The next call replaces the connection: here, no runtime need be left.
        if !self.is_over && self.since.elapsed() >= SHORTEST_WAIT {
            self.suspect();
        }
    }
}

/// Whether the server takes no calls at present, so that the address may lead to another server by now. The call had no effect.
fn leads_nowhere(error: &RedisError) -> bool {
    const KINDS: [ServerErrorKind; 3] =
        [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown, ServerErrorKind::BusyLoading];
    match error.kind() {
        ErrorKind::Server(kind) if KINDS.contains(&kind) => true,
        // Before version 7 the error of a command in a script comes inside of a text.
        _ => error.to_string().contains("READONLY "),
    }
}

/// Whether the same call may succeed at once, on another connection: this one was closed or leads nowhere.
pub(super) fn may_succeed_at_once(error: &RedisError) -> bool {
    (error.is_connection_dropped() && !error.is_connection_refusal()) || leads_nowhere(error)
}
