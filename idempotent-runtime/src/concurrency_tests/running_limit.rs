//! The number of running handlers never exceeds its limits, and a handler that has ended no longer counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::concurrency_tests::explore::schedules;
use crate::policy::scope::Scope;
use crate::running_limit::RunningLimit;
use crate::sync::tokio;
use crate::sync::tokio::task::yield_now;

const MOST: usize = 2;
const MOST_PER_SCOPE: usize = 1;

const SCOPES: [&str; 3] = ["charges", "refunds", "orders"];

// The interleaving that `try_count` prevents by one step:
//   A and B both read that one handler runs, so both may run
//   A and B both write two: three handlers run
#[test]
fn running_handlers_never_exceed_their_limits() {
    schedules(4_000, async || {
        let limit = Arc::new(RunningLimit::new(MOST, MOST_PER_SCOPE));
        // Counters of the test itself: the checker need not switch tasks at them.
        let running = Arc::new([const { AtomicUsize::new(0) }; SCOPES.len()]);
        let handlers: Vec<_> = [0, 0, 1, 2]
            .into_iter()
            .map(|scope| {
                let (limit, running) = (Arc::clone(&limit), Arc::clone(&running));
                tokio::spawn(async move {
                    let Some(permit) = limit.acquire(Scope::Handler(SCOPES[scope])) else { return };
                    running[scope].fetch_add(1, Ordering::Relaxed);
                    let counts: Vec<_> = running.iter().map(|count| count.load(Ordering::Relaxed)).collect();
                    assert!(counts.iter().sum::<usize>() <= MOST, "{counts:?}");
                    assert!(counts.iter().all(|&count| count <= MOST_PER_SCOPE), "{counts:?}");
                    yield_now().await;
                    running[scope].fetch_sub(1, Ordering::Relaxed);
                    drop(permit);
                })
            })
            .collect();
        for handler in handlers {
            handler.await.expect("the task is not aborted");
        }
        let [first, second, third] = SCOPES.map(|scope| limit.acquire(Scope::Handler(scope)));
        assert!(first.is_some() && second.is_some() && third.is_none());
        drop(first);
        assert!(limit.acquire(Scope::Handler(SCOPES[1])).is_none(), "the scope has its handler");
        assert!(limit.acquire(Scope::Handler(SCOPES[2])).is_some());
        drop(second);
    });
}
