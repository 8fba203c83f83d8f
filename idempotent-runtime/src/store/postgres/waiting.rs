//! A call that waits for a connection of the pool also finds out whether the server is alive.
//!
//! If a server has no place for another connection, sqlx tries again and again, and does not report why the call waits.

use std::pin::pin;

use sqlx::ConnectOptions as _;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::store::line::Call;
use crate::store::postgres::failure::is_short_of_something;
use crate::store::postgres::pooler::ALIVE_WITHIN;
use crate::store::shortage;
use crate::sync::tokio::time::Instant;

/// Lets one call at a time open a connection outside of the pool.
#[derive(Default)]
pub(super) struct Waiting(Mutex<()>);

impl Waiting {
    /// Takes a connection of the pool.
    pub(super) async fn acquire(&self, pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let mut acquiring = pin!(pool.acquire());
        let Some(call) = Call::current() else { return acquiring.await };
        let (limit, since) = (call.limit().min(pool.options().get_acquire_timeout()), Instant::now());
        // The test begins late, because most often the connection is being opened and the processors are busy.
        if let Ok(acquired) = timeout(limit / 4 * 3, &mut acquiring).await {
            return acquired;
        }
        if !call.is_server_alive(since) {
            tokio::select! {
                acquired = &mut acquiring => return acquired,
                () = self.ask(pool, &call) => {}
            }
        }
        acquiring.await
    }

    async fn ask(&self, pool: &PgPool, call: &Call) {
        let Ok(_only) = self.0.try_lock() else { return };
        let options = pool.connect_options();
        let is_alive = match timeout(ALIVE_WITHIN, options.connect()).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => is_short_of_something(&error) || shortage::is_cause_of(&error),
            Err(_) => false,
        };
        if is_alive {
            call.server_lives();
        }
    }
}
