//! The time in which no other process could renew a lease, because the file was locked.
//!
//! SQLite has one writer. A lease whose holder waits for the lock must not count as expired: its handler runs. So whoever held
//! the lock for long, or waited long for it, makes up for that time: the leases that were alive at its begin, and have little
//! time left, are extended by it before a claim is judged. The file tells until when that was done, so that no time is added
//! twice by those that wait for the same lock: the lease of a process that has died would not end while there is a crowd.

use sqlx::sqlite::SqliteConnection;

use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::schema;

/// In milliseconds. A shorter time is what any write takes.
const LONG: i64 = 20;

/// In milliseconds. A lease that has more left is renewed in time, whatever happened.
const ENOUGH_LEFT: i64 = 10_000;

/// Since when the file is locked, by the clock of the file in milliseconds.
#[derive(Clone, Copy)]
pub(super) struct LockTime {
    since: i64,
}

impl LockTime {
    pub(super) fn starts(clock: Clock) -> Self {
        Self { since: clock.now() }
    }

    pub(super) fn is_long(self, clock: Clock) -> bool {
        clock.now() - self.since >= LONG
    }

    /// Extends the leases that were alive when this time began; within a transaction.
    pub(super) async fn make_up(self, connection: &mut SqliteConnection, clock: Clock) -> Result<(), sqlx::Error> {
        if !self.is_long(clock) {
            return Ok(());
        }
        let now = clock.now();
        let made_up_until: i64 = sqlx::query_scalar(schema::MADE_UP_UNTIL).fetch_one(&mut *connection).await?;
        // One that lies ahead is of a time before the clock was set back.
        let since = if made_up_until <= now { self.since.max(made_up_until) } else { self.since };
        let passed = now - since;
        let until = now + ENOUGH_LEFT.min(passed.saturating_mul(10));
        schema::at(since, schema::EXTEND_LEASES).bind(until).bind(passed).execute(&mut *connection).await?;
        schema::at(now, schema::MAKE_UP_UNTIL).execute(connection).await.map(drop)
    }

    /// The same in a transaction of its own.
    pub(super) async fn make_up_alone(
        self,
        connection: &mut SqliteConnection,
        clock: Clock,
    ) -> Result<(), sqlx::Error> {
        if !self.is_long(clock) {
            return Ok(());
        }
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        let made_up = match self.make_up(connection, clock).await {
            Ok(()) => sqlx::query("COMMIT").execute(&mut *connection).await.map(drop),
            error => error,
        };
        if made_up.is_err() {
            let _ = sqlx::query("ROLLBACK").execute(connection).await;
        }
        made_up
    }
}
