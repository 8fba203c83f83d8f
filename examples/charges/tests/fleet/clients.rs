//! The clients: they send every key many times, in random order, to any server, and repeat until there is an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use futures_util::stream::{self, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

use crate::servers::{Fleet, SERVERS};

pub(crate) const KEYS: usize = 1_000;

const REQUESTS: usize = 10_000;

/// How many requests are in flight, at most.
const CLIENTS: usize = 200;

/// Far longer than a run takes. It only ends runs in which a key never gets an answer.
const LIMIT: Duration = Duration::from_mins(2);

/// The seed that decides the order of the requests, which server gets each of them, and which server is killed.
#[derive(Clone, Copy)]
pub(crate) struct Seed(u64);

impl Seed {
    /// The seed in the environment, or else a new one in every run.
    pub(crate) fn of_this_run() -> Self {
        let seed = match std::env::var("CHARGES_TEST_SEED") {
            Ok(seed) => seed.parse().expect("CHARGES_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos())),
        };
        println!("CHARGES_TEST_SEED={seed}");
        Self(seed)
    }

    /// A generator of random numbers that differs for each `number`.
    pub(crate) fn random(self, number: u64) -> Rng {
        Rng::with_seed(self.0.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CHARGES_TEST_SEED={}", self.0)
    }
}

pub(crate) struct Requests {
    pub(crate) path: &'static str,
    /// The body that is sent under the key with this number.
    pub(crate) body: Box<dyn Fn(usize) -> Value>,
    /// The time over which the requests are spread.
    pub(crate) over: Duration,
}

/// A final answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// The member with this name in a JSON body.
    pub(crate) fn member(&self, name: &str) -> Value {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body[name].clone()
    }

    /// The code of a rejection.
    pub(crate) fn code(&self) -> Option<String> {
        self.member("code").as_str().map(str::to_owned)
    }
}

/// What the clients saw.
pub(crate) struct Outcome {
    seed: Seed,
    answers: BTreeMap<String, BTreeSet<Answer>>,
    /// How many requests were told that the first one still runs.
    pub(crate) in_flight: usize,
}

impl Requests {
    pub(crate) async fn play(&self, fleet: &Fleet, seed: Seed) -> Outcome {
        let (begun, in_flight) = (Instant::now(), AtomicUsize::new(0));
        let answers = stream::iter(order(seed).into_iter().zip(0_u32..))
            .then(|(key, number)| async move {
                // Spread evenly, so that servers are killed while requests run and not after them.
                tokio::time::sleep_until(begun + self.over * number / u32::try_from(REQUESTS).expect("it fits")).await;
                (key, number)
            })
            .map(|(key, number)| self.until_answered(fleet, seed, key, number, &in_flight))
            .buffer_unordered(CLIENTS)
            .fold(BTreeMap::<_, BTreeSet<_>>::new(), async |mut answers, (key, answer)| {
                answers.entry(key).or_default().insert(answer);
                answers
            })
            .await;
        assert_eq!(answers.len(), KEYS);
        println!("{REQUESTS} requests in {:.1?}", begun.elapsed());
        Outcome { seed, answers, in_flight: in_flight.into_inner() }
    }

    async fn until_answered(
        &self,
        fleet: &Fleet,
        seed: Seed,
        key_number: usize,
        number: u32,
        in_flight: &AtomicUsize,
    ) -> (String, Answer) {
        let (begun, key, body) = (Instant::now(), format!("key-{key_number}"), (self.body)(key_number));
        let mut random = seed.random(u64::from(number) + 1);
        loop {
            let request = fleet.client.post(fleet.url(random.usize(..SERVERS), self.path)).bearer_auth("alice");
            let sent = request.header("idempotency-key", &key).json(&body).send().await;
            // A broken connection tells nothing about what the server has done.
            if let Ok(response) = sent {
                let status = response.status().as_u16();
                if let Ok(body) = response.text().await {
                    let answer = Answer { status, body };
                    match answer.code().as_deref() {
                        Some("in_flight") => _ = in_flight.fetch_add(1, Ordering::Relaxed),
                        Some("store_unavailable") => {}
                        _ => return (key, answer),
                    }
                }
            }
            assert!(begun.elapsed() < LIMIT, "{key} gets no answer, {seed}");
            tokio::time::sleep(Duration::from_millis(random.u64(20..100))).await;
        }
    }
}

/// The keys in the order of their requests, each equally often. Most duplicates follow each other closely, like
/// impatient retries, and some come much later.
fn order(seed: Seed) -> Vec<usize> {
    let mut random = seed.random(u64::MAX);
    let mut places: Vec<(usize, usize)> = (0..REQUESTS)
        .map(|request| {
            let key = request % KEYS;
            let delay = if random.u8(..5) > 0 { random.usize(..20) } else { random.usize(..KEYS) };
            (key + delay, key)
        })
        .collect();
    random.shuffle(&mut places);
    places.sort_by_key(|&(place, _)| place);
    places.into_iter().map(|(_, key)| key).collect()
}

impl Outcome {
    /// # Panics
    ///
    /// When two requests with the same key got different answers.
    pub(crate) fn every_key_has_one_answer(&self) {
        for (key, answers) in &self.answers {
            assert_eq!(answers.len(), 1, "{key}: {answers:?}, {}", self.seed);
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.answers.keys()
    }

    pub(crate) fn answers(&self) -> impl Iterator<Item = (&String, &Answer)> {
        self.answers.iter().flat_map(|(key, answers)| answers.iter().map(move |answer| (key, answer)))
    }
}
