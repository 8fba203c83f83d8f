//! Counts how often each key was executed, and runs clients that do not give up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;

use crate::{Answer, PATIENCE, Server, eventually, lock};

/// How often the handlers have executed each key.
#[derive(Clone, Default)]
pub struct Executions(Arc<Mutex<HashMap<String, usize>>>);

impl Executions {
    /// Counts one execution of `key` and returns its number.
    pub fn count(&self, key: &str) -> usize {
        let mut executions = lock(&self.0);
        let count = executions.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// The number of all executions.
    pub fn total(&self) -> usize {
        lock(&self.0).values().sum()
    }

    /// Waits until ten more executions have been counted, so that a fault that begins now meets requests in flight.
    pub async fn ten_more(&self) {
        let before = self.total();
        eventually(async || self.total(), |&total| total >= before + 10).await;
    }

    /// The keys that were executed more than once.
    pub fn repeated(&self) -> Vec<(String, usize)> {
        let executions = lock(&self.0);
        executions.iter().filter(|(_, count)| **count > 1).map(|(key, count)| (key.clone(), *count)).collect()
    }
}

/// Posts `keys` requests with different keys, eight at a time and each twice, and repeats those that are rejected with
/// 409 or 503 until they are answered. Returns the answers, two for each key, and how many requests were rejected with
/// 503.
///
/// # Panics
///
/// When a request is answered in another way, or gets no answer within three times [`PATIENCE`].
pub async fn post_until_answered(server: &Server, path: &str, prefix: &str, keys: usize) -> (Vec<Answer>, usize) {
    let rejected = AtomicUsize::new(0);
    let client = async |client: usize| {
        let mut answers = Vec::new();
        for number in (client..2 * keys).step_by(8) {
            answers.push(until_answered(server, path, &format!("{prefix}{}", number / 2), &rejected).await);
        }
        answers
    };
    let answers = join_all((0..8).map(client)).await.into_iter().flatten().collect();
    (answers, rejected.into_inner())
}

async fn until_answered(server: &Server, path: &str, key: &str, rejected: &AtomicUsize) -> Answer {
    let asking = async {
        loop {
            let answer = server.post_with_key(path, key).await;
            if answer.status.is_success() {
                return answer;
            }
            assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
            match answer.rejection().as_str() {
                "in_flight" => {}
                "store_unavailable" => _ = rejected.fetch_add(1, Ordering::Relaxed),
                _ => panic!("{answer:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(3 * PATIENCE, asking).await.unwrap_or_else(|_| panic!("{key} is never answered"))
}
