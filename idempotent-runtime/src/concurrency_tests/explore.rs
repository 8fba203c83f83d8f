//! Runs a test under many schedules, or under all of them.

use std::cell::Cell;
use std::env;
use std::thread;
use std::time::Duration;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

use crate::concurrency_tests::clock;

/// How many choices of a schedule must be right for a bug to appear: three are enough for nearly every known bug.
const DEPTH: usize = 3;

/// A test that creates all its state anew for each run, and fails by a panic.
pub(super) trait ScheduledTest: AsyncFn() + Copy + Send + Sync + 'static {}

impl<T: AsyncFn() + Copy + Send + Sync + 'static> ScheduledTest for T {}

thread_local! {
    static EXECUTIONS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `test` under every possible schedule. There must be fewer than `limit`.
pub(super) fn every_schedule(limit: usize, test: impl ScheduledTest) {
    let executions = run(DfsScheduler::new(Some(limit), true), 0, test);
    assert!(env::var_os("REPLAY").is_some() || executions < limit, "more than {limit} schedules: this proves nothing");
}

/// Runs `test` under `count` schedules. Half of them choose each step at random. The other half make a few changes of
/// priority, which finds bugs that need one thread to pause for long.
pub(super) fn schedules(count: usize, test: impl ScheduledTest) {
    let count = env::var("SCHEDULES").map_or(count, |count| count.parse().expect("SCHEDULES is a number"));
    run(RandomScheduler::new(count / 2), LAST_TURNS, test);
    run(PctScheduler::new(DEPTH, count / 2), LAST_TURNS, test);
}

/// How many turns the other tasks get at the end. The checker drops the tasks that are left, and then a destructor must
/// not wait for a lock that another of these tasks holds.
const LAST_TURNS: usize = 100;

fn run(scheduler: impl Scheduler + 'static, last_turns: usize, test: impl ScheduledTest) -> usize {
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    config.failure_persistence = match env::var_os("SCHEDULE_FOLDER") {
        Some(folder) => FailurePersistence::File(Some(folder.into())),
        None => FailurePersistence::Print,
    };
    let body = move || {
        EXECUTIONS.set(EXECUTIONS.get() + 1);
        clock::reset();
        shuttle::future::block_on(async {
            test().await;
            // Tasks that still sleep, although nothing is left to do, wake up and end: the checker assumes that a task
            // whose handle is kept is awaited.
            clock::advance(Duration::from_hours(48));
            for _ in 0..last_turns {
                shuttle::future::yield_now().await;
            }
        });
    };
    let _told = TellOnFailure;
    match env::var_os("REPLAY") {
        Some(file) => {
            let scheduler = ReplayScheduler::new_from_file(file).expect("REPLAY names the file of a schedule");
            Runner::new(scheduler, config).run(body)
        }
        None => Runner::new(scheduler, config).run(body),
    }
}

struct TellOnFailure;

impl Drop for TellOnFailure {
    fn drop(&mut self) {
        let executions = EXECUTIONS.get();
        let outcome = if thread::panicking() { "fails in execution" } else { "holds after" };
        println!("{}: {outcome} {executions}", thread::current().name().unwrap_or_default());
    }
}
