//! Compares two ways of doing the same work, in alternating rounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use futures_util::future::{BoxFuture, join_all};
use tower::ServiceExt;

use crate::charge::{CHARGES, order};
use crate::report::median;
use crate::scenario::key;

/// Does one piece of work. Each piece has a unique number.
pub type Work = Arc<dyn Fn(usize) -> BoxFuture<'static, ()> + Send + Sync>;

/// Wraps a function as [`Work`].
pub fn work<F>(function: impl Fn(usize) -> F + Send + Sync + 'static) -> Work
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |number| Box::pin(function(number)))
}

/// How long a measurement takes.
#[derive(Clone, Copy)]
pub struct Effort {
    /// How often each contender runs.
    pub rounds: usize,
    /// How long each run takes.
    pub round: Duration,
}

/// The medians over the rounds.
pub struct Outcome {
    /// Pieces of work per second of this library.
    pub ours: f64,
    /// Pieces of work per second of the database alone.
    pub bare: f64,
    /// The median of the quotients of each round: a disturbance that lasts longer than a round affects both sides.
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
    /// Work that this many callers do at the same time.
    pub fn new(callers: usize, work: Work) -> Self {
        Self { work, callers, per_call: 1 }
    }

    /// Each call does this many pieces of work.
    pub fn in_batches_of(self, pieces: usize) -> Self {
        Self { per_call: pieces, ..self }
    }

    /// Pieces of work per second.
    async fn rate(&self, round: Duration) -> f64 {
        let begun = Instant::now();
        let callers = (0..self.callers).map(|_| {
            let work = Arc::clone(&self.work);
            // Runs on the workers of the runtime, as connections do.
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

/// Runs both sides. Each of them comes first equally often.
pub async fn contest(name: &str, effort: Effort, ours: &Side, bare: &Side) -> Outcome {
    // Warm up, so that connections, prepared statements and caches are not measured.
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

/// A number that is unique among the pieces of work of this process.
pub fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Charges of 200 bytes, each with a new key.
///
/// # Panics
///
/// When an answer is not 201. The work panics, and not this function.
pub fn charges(router: Router) -> Work {
    let body = order(200);
    work(move |number| {
        let (router, body) = (router.clone(), body.clone());
        async move {
            let request = Request::post(CHARGES)
                .header(header::CONTENT_TYPE, "application/json")
                .header("idempotency-key", key(number >> 32, number))
                .body(Body::from(body))
                .expect("the request is well-formed");
            let response = router.oneshot(request).await.expect("a router is infallible");
            assert_eq!(response.status(), StatusCode::CREATED);
        }
    })
}
