//! Commands that no request waits for.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use redis::Cmd;
use tokio::sync::Semaphore;

use crate::store::columns::span_millis;
use crate::store::redis::connection::Connection;

/// The largest number of commands that have no answer yet.
const UNANSWERED: usize = 1024;

#[derive(Clone)]
pub(super) struct Unawaited {
    connection: Connection,
    room: Arc<Semaphore>,
}

impl Unawaited {
    pub(super) fn over(connection: Connection) -> Self {
        Self { connection, room: Arc::new(Semaphore::new(UNANSWERED)) }
    }

    /// Adds the names of claims to a set of claims that expire.
    pub(super) async fn enter<'a>(&self, set: &str, claims: impl IntoIterator<Item = (&'a [u8], Duration)>) {
        let mut enter = redis::cmd("ZADD");
        enter.arg(set);
        for (name, ttl) in claims {
            enter.arg(after(ttl)).arg(name);
        }
        self.send(enter).await;
    }

    /// Sends a command that changes the index of claims. Waits for the answer only if too many commands have none yet.
    pub(super) async fn send(&self, command: Cmd) {
        if let Some(rest) = self.begin(command) {
            rest.await;
        }
    }

    /// Sends the command. Returns a future that waits for the answer if too many commands have none yet.
    pub(super) fn begin(&self, command: Cmd) -> Option<impl Future<Output = ()> + use<>> {
        let room = Arc::clone(&self.room).try_acquire_owned();
        let may_return = room.is_ok();
        let connection = self.connection.clone();
        let mut sending = Box::pin(async move {
            // The listing of all entries shows the claim too, and removes no name.
            if let Err(error) = connection.query::<()>(&command).await {
                tracing::debug!(%error, "the name of a claim could not be changed in the index of claims");
            }
            drop(room);
        });
        // The command is sent before this returns, so the command that ends the claim comes after it.
        if sending.as_mut().now_or_never().is_some() {
            return None;
        }
        if !may_return {
            return Some(sending);
        }
        drop(crate::sync::tokio::spawn(sending));
        None
    }
}

/// Returns that time from now in milliseconds, by this machine's clock. If the clock is wrong, a later check corrects
/// the result.
pub(super) fn after(span: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    span_millis(now).saturating_add(span_millis(span))
}
