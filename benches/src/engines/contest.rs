//! Two ways of doing the same work, in alternating rounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};

use crate::report::median;

/// Does one piece of work; each has a number of its own.
pub type Work = Arc<dyn Fn(usize) -> BoxFuture<'static, ()> + Send + Sync>;

/// Wraps a function as [`Work`].
pub fn work<F>(function: impl Fn(usize) -> F + Send + Sync + 'static) -> Work
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |number| Box::pin(function(number)))
}

/// How long is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    /// How often each contender runs.
    pub rounds: usize,
    /// For how long each time.
    pub round: Duration,
}

/// What came out of it: medians over the rounds.
pub struct Outcome {
    /// Pieces of work per second.
    pub ours: f64,
    /// The same for the engine alone.
    pub bare: f64,
    /// The median of each round's quotient: what disturbs the machine for longer than a round disturbs both.
    pub ratio: f64,
}

/// One side of a contest.
#[derive(Clone)]
pub struct Side {
    work: Work,
    callers: usize,
    per_call: usize,
}

impl Side {
    /// Work that this many callers do at once.
    pub fn new(callers: usize, work: Work) -> Self {
        Self { work, callers, per_call: 1 }
    }

    /// Each call does this many pieces.
    pub fn in_batches_of(self, pieces: usize) -> Self {
        Self { per_call: pieces, ..self }
    }

    /// Pieces of work per second.
    async fn rate(&self, round: Duration) -> f64 {
        let begun = Instant::now();
        let callers = (0..self.callers).map(|_| {
            let work = Arc::clone(&self.work);
            // On the workers of the runtime, as connections are.
            tokio::spawn(async move {
                let mut calls = 0_usize;
                while begun.elapsed() < round {
                    work(next_number()).await;
                    calls += 1;
                }
                calls
            })
        });
        let calls: usize = join_all(callers).await.into_iter().map(|calls| calls.expect("the caller ends")).sum();
        (calls * self.per_call) as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Runs both, and each of them first as often as the other.
pub async fn contest(name: &str, effort: Effort, ours: &Side, bare: &Side) -> Outcome {
    // Connections, prepared statements and caches are not what is measured.
    for side in [ours, bare] {
        side.rate(effort.round / 4).await;
    }
    let (mut our_rates, mut bare_rates) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        if round % 2 == 0 {
            our_rates.push(ours.rate(effort.round).await);
            bare_rates.push(bare.rate(effort.round).await);
        } else {
            bare_rates.push(bare.rate(effort.round).await);
            our_rates.push(ours.rate(effort.round).await);
        }
    }
    let ratio = median(our_rates.iter().zip(&bare_rates).map(|(ours, bare)| ours / bare).collect());
    let outcome = Outcome { ours: median(our_rates), bare: median(bare_rates), ratio };
    eprintln!("{name}: {:.0}/s against {:.0}/s, {:.3}", outcome.ours, outcome.bare, outcome.ratio);
    outcome
}

/// A number that no other piece of work of this process has.
pub fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
