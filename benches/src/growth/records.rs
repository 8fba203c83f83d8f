//! Records of one size, and the times to enter and to find them.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use idempotent_runtime::store::{Claim, Held, ImmediateStore, MemoryStore, Store, StoreAdmin};
use idempotent_runtime::{Record, RecordKey, RecordedBody};

use crate::engines::sample::{TTL, record, request};
use crate::report::median;
use crate::scenario::key;

/// The number of rounds in which pairs and claims are measured.
const ROUNDS: usize = 21;
pub(super) const A_ROUND: usize = 1_000;

/// The first number of keys that are never in the filled store.
const FRESH: usize = 1 << 40;

/// The key with this number: the client's part has 36 characters.
pub(super) fn numbered(number: usize) -> RecordKey {
    RecordKey::new("charges", None, &client_key(number))
}

pub(super) fn client_key(number: usize) -> String {
    key(number >> 32, number & 0xffff_ffff)
}

/// The bytes that the application gave: key, headers and body.
pub(super) fn payload_bytes() -> usize {
    let Record { headers, body, .. } = record();
    let lines: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let RecordedBody::Whole(body) = body else { unreachable!("the sample has a body") };
    client_key(0).len() + lines + body.len()
}

/// The resident memory of this process.
pub(super) fn resident_bytes() -> usize {
    const PAGE: usize = 4_096;
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux says what a process takes");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("the second field counts the resident pages") * PAGE
}

pub(super) fn immediate(store: &MemoryStore) -> &dyn ImmediateStore {
    store.immediate().expect("a store in memory answers at once")
}

/// Enters one record as the engine does.
pub(super) fn enter(store: &dyn ImmediateStore, key: &RecordKey, record: &Record, ttl: Duration) {
    let request = request().with_ttl(ttl);
    let claim = store.claim_now(key, request).expect("there is room");
    assert_eq!(claim, Claim::Acquired { attempt: 1 });
    assert_eq!(store.complete_now(key, request.token, record, ttl).expect("the store completes"), Held::Yes);
}

/// Nanoseconds of a claim with its completion. The store has the same size before each round.
pub(super) async fn fresh_nanos(store: &MemoryStore) -> f64 {
    let (now, record) = (immediate(store), record());
    let mut means = Vec::new();
    for round in 0..ROUNDS {
        let keys: Vec<_> = (0..A_ROUND).map(|number| numbered(FRESH + round * A_ROUND + number)).collect();
        let begun = Instant::now();
        keys.iter().for_each(|key| enter(now, key, &record, TTL));
        means.push(begun.elapsed().as_nanos() as f64 / A_ROUND as f64);
        for key in &keys {
            assert!(store.purge(key).await.expect("a store in memory answers"));
        }
    }
    median(means)
}

/// Nanoseconds of a claim that finds one of `size` records, including making the response's record from it.
pub(super) fn found_nanos(store: &MemoryStore, size: usize) -> f64 {
    let now = immediate(store);
    let keys: Vec<_> = scattered(size).map(numbered).collect();
    let means = keys.chunks(A_ROUND).map(|keys| {
        let begun = Instant::now();
        for key in keys {
            let claim = now.claim_now(key, request()).expect("a store in memory answers");
            assert!(matches!(black_box(claim), Claim::Completed(_)));
        }
        begun.elapsed().as_nanos() as f64 / A_ROUND as f64
    });
    median(means.collect())
}

/// Numbers below `size` in an order that processors cannot predict. They are the same in each run.
pub(super) fn scattered(size: usize) -> impl Iterator<Item = usize> {
    (0..ROUNDS * A_ROUND).map(move |number| {
        let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        usize::try_from((mixed ^ (mixed >> 32)) % size as u64).expect("it is less than `size`")
    })
}

/// Keys that are not in the filled store.
pub(super) fn fresh_keys() -> Vec<String> {
    (0..ROUNDS * A_ROUND).map(|number| client_key(FRESH + number)).collect()
}
