//! Bodies: contradictory framing, malformed chunks, too many bytes, too few, too slow ones, and one request after
//! another.

use std::fmt::Write as _;

use axum::http::StatusCode;
use idempotent_tests::{Logs, Raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::raw_requests::charges::{Charges, PATHS, SECRET, request};

/// A request with these framing headers and this body.
fn framed(path: &str, key: &str, framing: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nidempotency-key: {key}\r\n{framing}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The request is rejected and leaves nothing: a good request can use the key.
async fn is_rejected_without_a_trace(charges: &Charges, number: usize, framing: &str, body: &str, status: u16) {
    let key = format!("{SECRET}-{status}-{number}");
    for path in PATHS {
        let name = format!("{path}, {framing:?}, {} bytes {:?}", body.len(), body.get(..60).unwrap_or(body));
        charges.is_rejected(&name, &framed(path, &key, framing, body), status).await;
        charges.is_executed_once(&name, &request(path, &key, b"good")).await;
    }
}

#[tokio::test]
async fn framing_that_contradicts_itself_is_rejected() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let cases = [
        "content-length: 4\r\ncontent-length: 5",
        "content-length: 4, 5",
        "content-length: -4",
        "content-length: +4",
        "content-length: 0x4",
        "content-length: four",
        "content-length:",
        "content-length: 4 4",
        "content-length: 99999999999999999999999",
        "transfer-encoding: gzip",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: xchunked",
        "transfer-encoding:",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "content-length: 4\r\ntransfer-encoding: identity",
    ];
    for (number, framing) in cases.into_iter().enumerate() {
        is_rejected_without_a_trace(&charges, number, framing, "body", 400).await;
    }
    // hyper reports only this number as too large, and the others as malformed.
    is_rejected_without_a_trace(&charges, 0, "content-length: 18446744073709551615", "body", 431).await;
    let old = format!(
        "POST /charges HTTP/1.0\r\nidempotency-key: {SECRET}-old\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    charges.is_rejected("chunks in HTTP/1.0", old.as_bytes(), 400).await;
    let twice = framed("/charges", &format!("{SECRET}-twice"), "content-length: 4\r\ncontent-length: 4", "body");
    charges.is_executed_once("the same length twice", &twice).await;
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn a_request_smuggled_behind_two_framings_does_not_run() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    for (number, framing) in [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "content-length: 4\r\ntransfer-encoding: chunked\r\ncontent-length: 6",
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("{SECRET}-outer-{number}");
        let smuggled =
            String::from_utf8(request("/charges", &format!("{SECRET}-smuggled-{number}"), b"")).expect("it is ASCII");
        // Without the broken framing, the connection would be kept alive.
        let bytes = format!(
            "POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {key}\r\n{framing}\r\n\r\n0\r\n\r\n{smuggled}"
        );
        charges.is_executed_once(framing, bytes.as_bytes()).await;
    }
    assert_eq!(charges.executions(), 3);
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn chunks_that_are_none_are_rejected() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let long_extension = format!("4;{}\r\nbody\r\n0\r\n\r\n", "e".repeat(64 * 1024));
    let mut many_trailers = "0\r\n".to_owned();
    for number in 0..5_000 {
        write!(many_trailers, "x-{number}: {number}\r\n").expect("a string takes everything");
    }
    many_trailers.push_str("\r\n");
    let cases = [
        "-1\r\nbody\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nbody\r\n0\r\n\r\n",
        "0000000000000000000000000000000000000000000000000zz",
        "xyz\r\nbody\r\n0\r\n\r\n",
        "\r\nbody\r\n0\r\n\r\n",
        "4 4\r\nbody\r\n0\r\n\r\n",
        "0x4\r\nbody\r\n0\r\n\r\n",
        "4\r\nbodybody\r\n0\r\n\r\n",
        "4\r\nbody0\r\n\r\n",
        "4\nbody\n0\n\n",
        "4\r\nbody\r\n\0\r\n\r\n",
        "4;\nbody\r\n0\r\n\r\n",
        "\u{ff14}\r\nbody\r\n0\r\n\r\n",
        &long_extension,
        &many_trailers,
    ];
    for (number, body) in cases.into_iter().enumerate() {
        is_rejected_without_a_trace(&charges, number, "transfer-encoding: chunked", body, 400).await;
    }
    for (number, body) in [
        "4\r\nbody\r\n0\r\n\r\n",
        "4;a=b;c=\"d\"\r\nbody\r\n0;last\r\n\r\n",
        "00000004 \r\nbody\r\n0\r\n\r\n",
        "1\r\nb\r\n1\r\no\r\n1\r\nd\r\n1\r\ny\r\n0\r\n\r\n",
        "4\r\nbody\r\n0\r\nx-trailer: 1\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = framed("/charges", &format!("{SECRET}-good-{number}"), "transfer-encoding: chunked", body);
        charges.is_executed_once(body, &bytes).await;
    }
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn body_over_its_limit_is_rejected_or_not_recorded() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    // The limit is axum's `DefaultBodyLimit`.
    let too_large = "b".repeat(2 * 1024 * 1024 + 1);
    let announced = format!("content-length: {}", too_large.len());
    is_rejected_without_a_trace(&charges, 0, &announced, &too_large, 413).await;
    let mut chunks = String::new();
    for chunk in too_large.as_bytes().chunks(16 * 1024) {
        let text = str::from_utf8(chunk).expect("it is ASCII");
        write!(chunks, "{:x}\r\n{text}\r\n", chunk.len()).expect("a string takes everything");
    }
    is_rejected_without_a_trace(&charges, 1, "transfer-encoding: chunked", &(chunks + "0\r\n\r\n"), 413).await;
    let before = charges.executions();
    let bytes = request("/charges", &format!("{SECRET}-large"), &[b'b'; 2048]);
    let first = charges.answer(&bytes).await;
    assert_eq!((first.status, first.body.len()), (StatusCode::CREATED, 2048));
    let again = charges.answer(&bytes).await;
    assert_eq!((again.status, again.rejection().as_str()), (StatusCode::CONFLICT, "response_not_recorded"));
    assert_eq!(charges.executions(), before + 1);
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn a_body_that_trickles_blocks_no_other_and_runs_once() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let bytes = request("/charges", &format!("{SECRET}-slow"), &[b'b'; 256]);
    let mut slow = charges.server().connect_and_send(&[]).await;
    slow.set_nodelay(true).expect("a connection has this option");
    for (number, byte) in bytes.iter().enumerate() {
        slow.write_all(&[*byte]).await.expect("the server reads");
        if number % 32 == 0 {
            let other = request("/charges", &format!("{SECRET}-beside-{number}"), b"");
            charges.is_executed_once("a request beside", &other).await;
        }
    }
    let mut received = String::new();
    slow.read_to_string(&mut received).await.expect("the server answers");
    assert!(received.starts_with("HTTP/1.1 201 "), "{received}");
    assert!(charges.answer(&bytes).await.is_replay());
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn pipelined_requests_with_one_key_run_once() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let kept_alive = |body: &str| {
        let length = body.len();
        format!(
            "POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {SECRET}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    let last = String::from_utf8(request("/charges", SECRET, b"same")).expect("it is ASCII");
    let bytes = [kept_alive("same").repeat(49), kept_alive("other"), last].concat();
    let exchange = charges.send(Raw::UntilClosed, bytes.as_bytes()).await;
    assert_eq!(exchange.answers.len(), 51, "{exchange:?}");
    let replays = exchange.answers.iter().filter(|answer| answer.is_replay()).count();
    assert_eq!((replays, charges.executions()), (49, 1));
    assert_eq!(exchange.answers[49].rejection(), "key_reused");
    charges.is_unharmed(&logs).await;
}
