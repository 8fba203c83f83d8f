//! The clock of leases and expiry: the same for all processes on the file, and no one can set it.
//!
//! Where the machine tells how long it has been up, and in which boot, now is the wall clock's time at the first opening
//! in this boot and what has passed since then. A wall clock that is set forward by an hour would otherwise end the lease
//! of a handler that runs, whose request would be executed twice; set back, it would keep the keys of processes that died.

use sqlx::sqlite::SqliteConnection;

use crate::store::columns::unix_millis;
use crate::store::sqlite::schema;

/// What tells the time to the statements.
#[derive(Clone, Copy)]
pub(super) enum Clock {
    /// Milliseconds between 1970 and the moment from which the machine's uptime counts.
    Steady { began_at: i64 },
    /// The machine has no such clock: that on the wall.
    Wall,
    /// It was this late when it was looked at.
    Stopped { at: i64 },
}

impl Clock {
    /// The one of this file and boot, which the first process to open it decides; within a transaction.
    pub(super) async fn of_file(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let Some((boot, uptime)) = boot().zip(uptime()) else { return Ok(Self::Wall) };
        let known = sqlx::query_scalar(schema::CLOCK).bind(&boot).fetch_optional(&mut *connection).await?;
        let began_at = if let Some(began_at) = known {
            began_at
        } else {
            let began_at = wall() - uptime;
            sqlx::query(schema::SET_CLOCK).bind(&boot).bind(began_at).execute(connection).await?;
            began_at
        };
        Ok(Self::Steady { began_at })
    }

    /// Milliseconds since 1970.
    pub(super) fn now(self) -> i64 {
        match self {
            Self::Steady { began_at } => uptime().map_or_else(wall, |uptime| began_at + uptime),
            Self::Wall => wall(),
            Self::Stopped { at } => at,
        }
    }

    /// For what shall happen in one moment.
    pub(super) fn stopped(self) -> Self {
        Self::Stopped { at: self.now() }
    }
}

fn wall() -> i64 {
    unix_millis(std::time::SystemTime::now())
}

/// How long the machine has been up, its sleep included, in milliseconds.
#[cfg(target_os = "linux")]
fn uptime() -> Option<i64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.checked_mul(1000)?.checked_add(time.tv_nsec / 1_000_000)
}

/// What tells one boot from the others.
#[cfg(target_os = "linux")]
fn boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn uptime() -> Option<i64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn boot() -> Option<String> {
    None
}
