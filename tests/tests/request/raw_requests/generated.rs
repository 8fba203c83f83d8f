//! Thousands of good requests, broken at random.

use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use idempotent_tests::{Logs, Raw, Seed};

use crate::raw_requests::charges::{Charges, PATHS, SECRET, request};

/// Each attacker has its own server, so that every execution it sees is its own.
const ATTACKERS: u64 = 8;

const REQUESTS: usize = 500;

/// How long an attacker waits for an answer that may never come. The assertions do not depend on it.
const SILENCE: Duration = Duration::from_millis(20);

/// Bytes that are inserted into a request, or that overwrite a part of it.
const SPLINTERS: [&[u8]; 16] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\0",
    b": ",
    b"\"",
    b"\\",
    b"\xff\xfe",
    b" ",
    b"\r\nidempotency-key: hush-other\r\n",
    b"\r\ncontent-length: 4\r\n",
    b"\r\ncontent-length: 18446744073709551616\r\n",
    b"\r\ntransfer-encoding: chunked\r\n",
    b"\r\nconnection: close, idempotency-key\r\n",
    b"0\r\n\r\n",
];

#[tokio::test]
async fn requests_broken_at_random_do_no_harm() {
    let (logs, seed) = (Logs::collect(), Seed::of_this_run());
    let outcomes = join_all((0..ATTACKERS).map(async |attacker| {
        let charges = Charges::start().await;
        let mut random = seed.random(attacker);
        let (mut executed, mut rejected) = (0, 0);
        for number in 0..REQUESTS {
            let bytes = attack(&mut random, number);
            let before = charges.executions();
            let raw = if random.u8(..8) == 0 { Raw::Leaves } else { Raw::UntilSilent(SILENCE) };
            let exchange = charges.send(raw, &bytes).await;
            let ran = charges.executions() - before;
            let told = exchange.answers.iter().filter(|answer| answer.status == 201 && !answer.is_replay()).count();
            // If the client closes first, a request may have been executed without its answer. If the client stays, it
            // gets an answer for every execution.
            let is_consistent = if exchange.server_closed { ran == told } else { ran >= told };
            assert!(is_consistent, "{ran} executions, {seed}: {} got {exchange:?}", bytes.escape_ascii());
            executed += ran;
            rejected += exchange.answers.iter().filter(|answer| answer.status.is_client_error()).count();
        }
        charges.is_unharmed(&logs).await;
        (executed, rejected)
    }))
    .await;
    let sent = outcomes.len() * REQUESTS;
    let (executed, rejected) = outcomes.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{sent} broken requests: {executed} executions, {rejected} rejections");
    // Some requests must be executed and some rejected, or the test would cover only one of the two.
    assert!(executed > 100 && rejected > 100, "{executed} executions, {rejected} rejections, {seed}");
}

/// One to three good requests of few keys, damaged in one to four places.
fn attack(random: &mut Rng, number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.usize(1..=3) {
        // The current key or an earlier one: retries of rejected requests, and of executed ones.
        let key = format!("{SECRET}-{}", number.saturating_sub(random.usize(0..3)));
        let body = vec![b'b'; random.usize(0..64)];
        bytes.extend(good(random, &key, &body));
    }
    for _ in 0..random.usize(1..=4) {
        damage(random, &mut bytes);
    }
    bytes
}

fn good(random: &mut Rng, key: &str, body: &[u8]) -> Vec<u8> {
    let path = PATHS[random.usize(..PATHS.len())];
    match random.u8(..3) {
        0 => request(path, key, body),
        1 => {
            let length = body.len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: \"{key}\";a=1\r\ncontent-length: {length}\r\n\r\n"
            );
            [head.as_bytes(), body].concat()
        }
        _ => {
            let length = body.len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            let chunk = if length == 0 { String::new() } else { format!("{length:x};e\r\n") };
            let end: &[u8] = if length == 0 { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" };
            [head.as_bytes(), chunk.as_bytes(), body, end].concat()
        }
    }
}

fn damage(random: &mut Rng, bytes: &mut Vec<u8>) {
    let at = random.usize(..=bytes.len());
    let length = random.usize(0..16).min(bytes.len() - at);
    match random.u8(..7) {
        0 => bytes.truncate(at),
        1 => _ = bytes.drain(at..at + length),
        2 => {
            let again = bytes[at..at + length].to_vec();
            bytes.splice(at..at, again);
        }
        3 => bytes.splice(at..at, SPLINTERS[random.usize(..SPLINTERS.len())].iter().copied()).for_each(drop),
        4 => {
            let splinter = SPLINTERS[random.usize(..SPLINTERS.len())];
            bytes.splice(at..at + length, splinter.iter().copied()).for_each(drop);
        }
        5 => bytes[at..at + length].iter_mut().for_each(|byte| *byte = random.u8(..)),
        _ => bytes[at..at + length].iter_mut().for_each(|byte| *byte ^= 1 << random.u8(..8)),
    }
}
