//! A stub sends the batches, and the clock stands still: it only advances when nothing else can happen. So a test sees whether a
//! caller was woken, or had to wait for its patience to end.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep};

use crate::store::batch::batcher::Batcher;
use crate::store::batch::queue::{Lead, Outcome, PATIENCE};
use crate::store::batch::sending::Sending;
use crate::store::error::StoreError;
use crate::sync::{Mutex, lock};

/// Answers a batch when it is let through. The answer is the number of operations in the batch.
struct Stub {
    sent: Mutex<Vec<Vec<u32>>>,
    let_through: Semaphore,
    failing_sessions: AtomicUsize,
    /// How long a session takes to begin.
    beginning: Mutex<Duration>,
}

impl Sending for Arc<Stub> {
    type Operation = u32;
    type Answer = usize;
    type Session = ();
    type Error = ();
    type Place = u64;

    const MOST: usize = 4;
    const MOST_BYTES: usize = 1024;

    fn under_way(&self) -> usize {
        1
    }

    fn place(_: &u32, number: u64) -> u64 {
        number
    }

    fn bytes(&self, _: &u32) -> usize {
        1
    }

    async fn session(&self) -> Result<(), StoreError> {
        let beginning = *lock(&self.beginning);
        sleep(beginning).await;
        let fails = |left: usize| left.checked_sub(1);
        match self.failing_sessions.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails) {
            Ok(_) => Err(StoreError::unavailable("no connection opens")),
            Err(_) => Ok(()),
        }
    }

    async fn send(&self, batch: &[Arc<u32>], (): &mut ()) -> Result<Vec<Option<usize>>, ()> {
        lock(&self.sent).push(batch.iter().map(|operation| **operation).collect());
        self.let_through.acquire().await.expect("it is never closed").forget();
        Ok(vec![Some(batch.len()); batch.len()])
    }

    fn is_rejected((): &()) -> bool {
        false
    }

    fn lost_with_its_task() {}

    fn answer_of_another(_: &usize) -> Option<usize> {
        None
    }
}

type Submitted = Result<Outcome<Arc<Stub>>, StoreError>;

struct Bench {
    stub: Arc<Stub>,
    batcher: Arc<Batcher<Arc<Stub>>>,
}

impl Bench {
    fn new() -> Self {
        let stub = Arc::new(Stub {
            sent: Mutex::default(),
            let_through: Semaphore::new(0),
            failing_sessions: AtomicUsize::new(0),
            beginning: Mutex::default(),
        });
        Self { batcher: Batcher::new(Arc::clone(&stub)), stub }
    }

    /// Submits an operation, and lets its task run until it waits.
    async fn submit(&self, operation: u32) -> tokio::task::JoinHandle<Submitted> {
        let batcher = Arc::clone(&self.batcher);
        let submitting = tokio::spawn(async move { batcher.submit(&Arc::new(operation), None).await });
        settle().await;
        submitting
    }

    async fn submit_each(&self, operations: RangeInclusive<u32>) -> Vec<tokio::task::JoinHandle<Submitted>> {
        let mut submitting = Vec::new();
        for operation in operations {
            submitting.push(self.submit(operation).await);
        }
        submitting
    }

    /// Submits an operation beside which no other one is under way.
    async fn alone(&self) -> Lead<()> {
        match self.submit(0).await.await.expect("it is answered") {
            Ok(Outcome::Alone(Some(lead))) => lead,
            _ => panic!("it is sent by its caller"),
        }
    }

    fn sent(&self) -> Vec<Vec<u32>> {
        lock(&self.stub.sent).clone()
    }
}

/// Lets all tasks run until they wait. The clock stands still meanwhile.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn answered(submitted: &Submitted) -> Option<usize> {
    match submitted {
        Ok(Outcome::Answered(answer)) => Some(*answer),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_gathered_goes_out_when_a_batch_is_answered() {
    let (bench, begun) = (Bench::new(), Instant::now());
    let lead = bench.alone().await;
    let waiting = bench.submit_each(1..=6).await;
    assert_eq!(bench.sent(), [[0; 0]; 0], "a call is under way");
    drop(lead);
    settle().await;
    assert_eq!(bench.sent(), [vec![1, 2, 3, 4]]);
    bench.stub.let_through.add_permits(2);
    let answers: Vec<_> =
        join_all(waiting).await.into_iter().map(|answer| answered(&answer.expect("no panic"))).collect();
    assert_eq!(answers, [Some(4), Some(4), Some(4), Some(4), Some(2), Some(2)]);
    assert_eq!(
        (bench.sent().len(), begun.elapsed().as_nanos()),
        (2, 0),
        "no caller has waited for its patience to end"
    );
    // The permit is free again.
    let (first, second) = (bench.submit(7).await, bench.submit(8).await);
    bench.stub.let_through.add_permits(2);
    for submitted in [first, second] {
        assert!(submitted.await.expect("no panic").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn caller_that_leaves_with_the_permit_passes_it_on() {
    let (bench, begun) = (Bench::new(), Instant::now());
    let lead = bench.alone().await;
    let (leaving, waiting) = (bench.submit(1).await, bench.submit(2).await);
    drop(lead);
    // The permit is already on its way to the first caller.
    leaving.abort();
    let submitted = waiting.await.expect("no panic");
    assert!(matches!(submitted, Ok(Outcome::Alone(Some(_)))), "it is alone now");
    assert_eq!(begun.elapsed().as_nanos(), 0);
    drop(submitted);
    drop(bench.alone().await);
    assert_eq!(bench.sent(), [[0; 0]; 0]);
}

#[tokio::test(start_paused = true)]
async fn session_that_fails_fails_one_caller_and_no_other() {
    let (bench, begun) = (Bench::new(), Instant::now());
    let lead = bench.alone().await;
    let waiting = bench.submit_each(1..=8).await;
    drop(lead);
    settle().await;
    // The task meets the first failure after the first batch, and a caller the second one.
    bench.stub.failing_sessions.store(2, Ordering::SeqCst);
    bench.stub.let_through.add_permits(3);
    let submitted: Vec<_> = join_all(waiting).await.into_iter().map(|submitted| submitted.expect("no panic")).collect();
    assert!(submitted[4].is_err(), "its own connection did not open");
    let answers: Vec<_> = submitted.iter().map(answered).collect();
    assert_eq!(answers, [Some(4), Some(4), Some(4), Some(4), None, Some(3), Some(3), Some(3)]);
    assert_eq!(begun.elapsed().as_nanos(), 0);
}

#[tokio::test(start_paused = true)]
async fn batch_without_an_answer_holds_no_other_one_up() {
    let bench = Bench::new();
    let lead = bench.alone().await;
    let (first, second) = (bench.submit(1).await, bench.submit(2).await);
    drop(lead);
    settle().await;
    assert_eq!(bench.sent(), [vec![1, 2]]);
    let (third, fourth) = (bench.submit(3).await, bench.submit(4).await);
    assert_eq!(bench.sent().len(), 1, "they wait for the first batch");
    advance(PATIENCE).await;
    settle().await;
    assert_eq!(bench.sent(), [vec![1, 2], vec![3, 4]]);
    bench.stub.let_through.add_permits(2);
    for submitted in [first, second, third, fourth] {
        assert_eq!(answered(&submitted.await.expect("no panic")), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn permit_that_becomes_free_interrupts_no_session_that_begins() {
    let (bench, begun) = (Bench::new(), Instant::now());
    let lead = bench.alone().await;
    *lock(&bench.stub.beginning) = Duration::from_millis(20);
    let waiting = bench.submit(1).await;
    advance(PATIENCE).await;
    settle().await;
    advance(Duration::from_millis(10)).await;
    drop(lead);
    assert!(matches!(waiting.await.expect("no panic"), Ok(Outcome::Alone(Some(_)))));
    assert_eq!(begun.elapsed(), PATIENCE + Duration::from_millis(20));
}

/// A runtime that no thread drives after its callers were answered holds no permit.
#[test]
fn runtime_that_stands_still_keeps_no_permit() {
    let runtime = || Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let (bench, first, second) = (Bench::new(), runtime(), runtime());
    first.block_on(async {
        let lead = bench.alone().await;
        let submit = |operation: u32| {
            let batcher = Arc::clone(&bench.batcher);
            async move { batcher.submit(&Arc::new(operation), None).await }
        };
        bench.stub.let_through.add_permits(1);
        let (one, two, ()) = tokio::join!(submit(1), submit(2), async { drop(lead) });
        assert_eq!((answered(&one), answered(&two)), (Some(2), Some(2)));
    });
    second.block_on(async {
        let begun = Instant::now();
        // The last batch had several operations, so this one waits for others before it goes out alone.
        drop(bench.alone().await);
        assert_eq!(begun.elapsed().as_nanos(), 0);
    });
}
