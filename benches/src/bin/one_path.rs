//! Sends a number of requests of one kind to one contender, and does nothing else. callgrind counts its instructions.
//!
//! The difference between two runs with different numbers excludes the instructions for start and end.

use axum::http::StatusCode;
use idempotent_benches::charge::{CHARGES, order};
use idempotent_benches::contenders::Contender;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [contender, scenario, requests] = arguments.as_slice() else {
        panic!("usage: one_path <bare|by-hand|ours> <first|replay|no-key> <requests>");
    };
    let contender = match contender.as_str() {
        "bare" => Contender::bare(),
        "by-hand" => Contender::by_hand(),
        "ours" => Contender::ours().await,
        other => panic!("`{other}` is neither `bare` nor `by-hand` nor `ours`"),
    };
    let requests: u32 = requests.parse().expect("a number of requests");
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
