//! The clock of leases and expiry, which does not follow changes of the machine's clock.
//!
//! If a wall clock were used and set forward by an hour, the lease of a running handler would end, and its request
//! would be executed twice. If it were set back, it would keep the keys of processes that died.
//!
//! A lease names the clock that wrote it. A process compares only times of its own clock. The lease of another clock
//! ends when it was not renewed for as long as it lasts: [`watch`](crate::store::sqlite::watch).
//!
//! If the machine reports its uptime and its boot, all processes of that boot have one clock, even in other time
//! namespaces: the time is the wall clock's time at the first opening in this boot plus the time that has passed since
//! then. A process that cannot learn this has a clock of its own.
//!
//! The expiry of a record is compared with any clock, whichever clock wrote it. All clocks begin with the time of the
//! wall clock.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};

use crate::record::unix_millis;
use crate::store::columns::span_millis;
use crate::store::sqlite::schema;

/// The clock that gives the statements their time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    id: i64,
    /// The milliseconds from 1970 to the moment from which the uptime counts.
    began_at: i64,
    uptime: Uptime,
    /// The time that a stopped clock shows.
    stopped_at: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
enum Uptime {
    Machine(Boot),
    Since(Instant),
}

/// The clock of a process that cannot share one.
static OF_PROCESS: LazyLock<Clock> = LazyLock::new(Clock::alone);

/// The milliseconds by which the wall clock can be ahead because of rounding alone.
const AHEAD: i64 = 1_000;

impl Clock {
    /// Returns the clock of this boot, which the first process that opens the file defines, or else the clock of this
    /// process. Call it in a transaction.
    pub(super) async fn of_file(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let Some((boot, uptime)) = Boot::current().and_then(|boot| Some((boot, boot.uptime()?))) else {
            return Ok(*OF_PROCESS);
        };
        sqlx::query(schema::ADD_CLOCK).bind(boot.id).bind(wall() - uptime).execute(&mut *connection).await?;
        let began_at = sqlx::query_scalar(schema::CLOCK).bind(boot.id).fetch_one(connection).await?;
        Ok(Self { id: boot.id, began_at, uptime: Uptime::Machine(boot), stopped_at: None })
    }

    /// Creates a clock that no other process and no other store has.
    pub(super) fn alone() -> Self {
        let id = RandomState::new().hash_one(std::process::id()).cast_signed();
        Self { id, began_at: wall(), uptime: Uptime::Since(Instant::now()), stopped_at: None }
    }

    #[cfg(test)]
    pub(super) fn ahead(self, millis: i64) -> Self {
        Self { began_at: self.began_at + millis, ..self }
    }

    /// Returns the number that distinguishes this clock from others.
    pub(super) fn id(self) -> i64 {
        self.id
    }

    /// Returns the time in milliseconds since 1970.
    pub(super) fn now(self) -> i64 {
        if let Some(at) = self.stopped_at {
            return at;
        }
        match self.uptime {
            Uptime::Machine(boot) => boot.uptime().map_or_else(wall, |uptime| self.began_at + uptime),
            Uptime::Since(start) => self.began_at.saturating_add(span_millis(start.elapsed())),
        }
    }

    /// Returns the expiry of a record that is made now. If the wall clock is ahead of this clock, it counts, because
    /// the next boot may begin with its time and must not find the record expired too early.
    pub(super) fn after(self, ttl: Duration) -> i64 {
        let now = self.now();
        let wall = wall();
        let now = if wall - now > AHEAD { wall } else { now };
        now.saturating_add(span_millis(ttl))
    }

    /// Returns a statement in which ?1 is the time and ?2 is the number of this clock.
    pub(super) fn statement(self, sql: &'static str) -> Query<'static, Sqlite, SqliteArguments> {
        schema::at(self.now(), sql).bind(self.id())
    }

    /// Returns a clock that always shows this moment.
    pub(super) fn stopped(self) -> Self {
        Self { stopped_at: Some(self.now()), ..self }
    }
}

fn wall() -> i64 {
    unix_millis(SystemTime::now())
}

/// A boot of the machine.
#[derive(Clone, Copy, Debug)]
struct Boot {
    id: i64,
    /// The milliseconds by which the clock of this time namespace is ahead of the machine's.
    offset: i64,
}

#[cfg(target_os = "linux")]
impl Boot {
    fn current() -> Option<Self> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self { id: boot_id(&id)?, offset: namespace_offset()? })
    }

    /// Returns the uptime of the machine with its sleep, in milliseconds.
    fn uptime(self) -> Option<i64> {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        time.tv_sec.checked_mul(1000)?.checked_add(time.tv_nsec / 1_000_000)?.checked_sub(self.offset)
    }
}

/// Returns the first half of the boot's UUID.
#[cfg(any(target_os = "linux", test))]
fn boot_id(text: &str) -> Option<i64> {
    let digits: String = text.trim().chars().filter(|&digit| digit != '-').collect();
    if digits.len() != 32 {
        return None;
    }
    u64::from_str_radix(digits.get(..16)?, 16).ok().map(u64::cast_signed)
}

/// Returns the offset of this process's time namespace, or `None` if it is unknown.
#[cfg(target_os = "linux")]
fn namespace_offset() -> Option<i64> {
    use std::fs::{read_link, read_to_string};

    match (read_link("/proc/self/ns/time"), read_link("/proc/self/ns/time_for_children")) {
        // The file below has the offset of the children.
        (Ok(own), Ok(of_children)) if own == of_children => {
            boot_offset(&read_to_string("/proc/self/timens_offsets").ok()?)
        }
        // The kernel has no time namespaces.
        (Err(_), Err(_)) => read_link("/proc/self/ns/pid").is_ok().then_some(0),
        _ => None,
    }
}

/// Reads the offset in lines such as `boottime 3600 0`, which have seconds and nanoseconds.
#[cfg(any(target_os = "linux", test))]
fn boot_offset(offsets: &str) -> Option<i64> {
    offsets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (clock, seconds, nanos) = (words.next()?, words.next()?, words.next()?);
        // The first kernels that had the file name the clock by its number.
        if clock != "boottime" && clock != "7" {
            return None;
        }
        let (seconds, nanos) = (seconds.parse::<i64>().ok()?, nanos.parse::<i64>().ok()?);
        seconds.checked_mul(1000)?.checked_add(nanos / 1_000_000)
    })
}

#[cfg(not(target_os = "linux"))]
impl Boot {
    fn current() -> Option<Self> {
        None
    }

    fn uptime(self) -> Option<i64> {
        let _ = (self.id, self.offset);
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{boot_id, boot_offset};

    #[test]
    fn boot_without_a_whole_uuid_is_none() {
        assert_eq!(boot_id("00000000-0000-0011-8000-000000000000\n"), Some(17));
        for text in ["", "00000000-0000-0011", "not-a-boot-000000000000000000000000"] {
            assert_eq!(boot_id(text), None, "{text}");
        }
    }

    #[test]
    fn time_namespace_without_an_offset_is_none() {
        assert_eq!(boot_offset("monotonic  1  0\nboottime  3600  5000000\n"), Some(3_600_005));
        assert_eq!(boot_offset("monotonic -1 0\nboottime -2 999000000\n"), Some(-1_001));
        for text in ["", "monotonic 1 0", "boottime one 0", "boottime 1"] {
            assert_eq!(boot_offset(text), None, "{text}");
        }
    }
}
