//! Sends a number of requests of one kind to one contender, and does nothing else. callgrind counts its instructions.
//!
//! The difference between two runs with different numbers excludes the instructions for start and end.

use axum::http::StatusCode;
use idempotent_benches::charge::{CHARGES, order};
use idempotent_benches::contenders::Contender;
use tokio::runtime::{Builder, Runtime};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [contender, scenario, requests, caller] = arguments.as_slice() else {
        panic!("usage: one_path <bare|by-hand|ours> <first|replay|no-key> <requests> <one-thread|block-on>");
    };
    let requests: u32 = requests.parse().expect("a number of requests");
    let sending = send(contender.clone(), scenario.clone(), requests);
    match caller.as_str() {
        "one-thread" => Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(sending),
        "block-on" => one_worker().block_on(sending),
        other => panic!("`{other}` is neither `one-thread` nor `block-on`"),
    }
}

fn one_worker() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

async fn send(contender: String, scenario: String, requests: u32) {
    let contender = match contender.as_str() {
        "bare" => Contender::bare(),
        "by-hand" => Contender::by_hand(),
        "ours" => Contender::ours().await,
        other => panic!("`{other}` is neither `bare` nor `by-hand` nor `ours`"),
    };
    let body = order(200);
    // All keys have the same length, so that each request takes the same path.
    let key = |number: u32| format!("8e03978e-40d5-43dd-bc93-{number:012x}");
    let recorded = key(u32::MAX);
    contender.send(CHARGES, Some(&recorded), body.clone(), StatusCode::CREATED).await;
    for number in 0..requests {
        let fresh = key(number);
        let key = match scenario.as_str() {
            "first" => Some(fresh.as_str()),
            "replay" => Some(recorded.as_str()),
            "no-key" => None,
            other => panic!("`{other}` is neither `first` nor `replay` nor `no-key`"),
        };
        contender.send(CHARGES, key, body.clone(), StatusCode::CREATED).await;
    }
}
