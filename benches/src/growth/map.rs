//! The physical limit: the standard library's map with as many values of the same size, without any rules.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::records::{A_ROUND, client_key, fresh_keys, payload_bytes, scattered};
use crate::report::median;

/// The times of a map, in nanoseconds.
#[derive(Serialize, Deserialize)]
pub(super) struct Map {
    pub(super) insert: f64,
    pub(super) look_up: f64,
}

/// Fills a map, and measures an insertion and a look-up that copies the value, as a replay must.
pub(super) fn measure(size: usize) -> Map {
    let value: Box<[u8]> = vec![7; payload_bytes()].into();
    // With capacity in advance, because the growth of a store is not part of its figure either.
    let mut map: HashMap<String, Box<[u8]>> = HashMap::with_capacity(size + 100_000);
    for number in 0..size {
        map.insert(client_key(number), value.clone());
    }
    let found: Vec<String> = scattered(size).map(client_key).collect();
    let (mut look_ups, mut insertions) = (Vec::new(), Vec::new());
    for keys in found.chunks(A_ROUND) {
        let begun = Instant::now();
        for key in keys {
            black_box(map.get(key).expect("it was filled").clone());
        }
        look_ups.push(begun.elapsed().as_nanos() as f64 / A_ROUND as f64);
    }
    for keys in fresh_keys().chunks(A_ROUND) {
        let begun = Instant::now();
        for key in keys {
            map.insert(key.clone(), value.clone());
        }
        insertions.push(begun.elapsed().as_nanos() as f64 / A_ROUND as f64);
        keys.iter().for_each(|key| drop(map.remove(key)));
    }
    Map { insert: median(insertions), look_up: median(look_ups) }
}
