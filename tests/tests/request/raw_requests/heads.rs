//! Heads that are not HTTP, have too many lines, are too long, or never end.

use std::fmt::Write as _;

use idempotent_tests::{Logs, Raw};
use tokio::io::AsyncReadExt;

use crate::raw_requests::charges::{Charges, SECRET};

const HEAD: &str = "POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 0\r\n";

/// hyper's own limit.
const MOST_HEADERS: usize = 100;

/// A head with this many lines, including the key.
fn bomb(lines: usize) -> String {
    let mut head = format!("{HEAD}idempotency-key: {SECRET}-bomb\r\n");
    for number in 4..lines {
        write!(head, "x-{number}: {number}\r\n").expect("a string takes everything");
    }
    head + "\r\n"
}

#[tokio::test]
async fn header_bombs_are_rejected_and_run_nothing() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    charges.is_executed_once("as many headers as allowed", bomb(MOST_HEADERS).as_bytes()).await;
    for lines in [MOST_HEADERS + 1, 1_000, 5_000, 20_000] {
        charges.is_rejected("a header bomb", bomb(lines).as_bytes(), 431).await;
    }
    let same = format!("{HEAD}{}\r\n", format!("idempotency-key: {SECRET}\r\n").repeat(5_000));
    charges.is_rejected("five thousand lines of the key", same.as_bytes(), 431).await;
    for (name, line) in [
        ("a value without end", format!("idempotency-key: {SECRET}{}", "k".repeat(1 << 20))),
        ("a name without end", format!("{SECRET}{}", "k".repeat(1 << 20))),
    ] {
        charges.is_rejected(name, format!("{HEAD}{line}").as_bytes(), 431).await;
    }
    let path = format!("POST /charges?{} HTTP/1.1\r\n\r\n", "p".repeat(70_000));
    charges.is_rejected("a long path", path.as_bytes(), 414).await;
    let line = format!("POST /{}", "p".repeat(1 << 20));
    charges.is_rejected("a request line without end", line.as_bytes(), 431).await;
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn heads_that_are_no_http_are_rejected() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let key = format!("idempotency-key: {SECRET}");
    let cases = [
        ("a folded value", format!("{HEAD}{key}\r\n folded\r\n\r\n")),
        ("a value folded by a tab", format!("{HEAD}{key}\r\n\tfolded\r\n\r\n")),
        ("nothing but a fold", format!("{HEAD}idempotency-key:\r\n {SECRET}\r\n\r\n")),
        ("a fold as the first line", format!("POST /charges HTTP/1.1\r\n {key}\r\n\r\n")),
        ("a space in front of the colon", format!("{HEAD}idempotency-key : {SECRET}\r\n\r\n")),
        ("a space in the name", format!("{HEAD}idempotency key: {SECRET}\r\n\r\n")),
        ("no name", format!("{HEAD}: {SECRET}\r\n\r\n")),
        ("no colon", format!("{HEAD}{SECRET}\r\n\r\n")),
        ("a NUL in the name", format!("{HEAD}idempotency\0-key: {SECRET}\r\n\r\n")),
        ("a carriage return alone", format!("{HEAD}{key}\r{key}\r\n\r\n")),
        ("no version", format!("POST /charges\r\n{key}\r\n\r\n")),
        ("version 1.9", format!("POST /charges HTTP/1.9\r\n{key}\r\n\r\n")),
        ("no path", format!("POST  HTTP/1.1\r\n{key}\r\n\r\n")),
        ("two paths", format!("POST /charges /charges HTTP/1.1\r\n{key}\r\n\r\n")),
        ("a method that is none", format!("PO(ST /charges HTTP/1.1\r\n{key}\r\n\r\n")),
        ("a control character in the path", format!("POST /char\x01ges HTTP/1.1\r\n{key}\r\n\r\n")),
        ("a TLS hello", "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03\r\n\r\n".to_owned()),
    ];
    for (name, bytes) in cases {
        let answer = charges.is_rejected(name, bytes.as_bytes(), 400).await;
        assert!(answer.body.is_empty(), "{name} reached us: {answer:?}");
    }
    let old = format!("POST /charges HTTP/1.0\r\ncontent-length: 0\r\n{key}-old\r\n\r\n");
    charges.is_executed_once("HTTP/1.0", old.as_bytes()).await;
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn a_head_without_end_is_held_until_its_client_leaves() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    for bytes in ["", "\r\n\r\n\r\n", "POST", "POST /charges HTTP/1.1\r\n", HEAD] {
        let exchange = charges.send(Raw::Leaves, bytes.as_bytes()).await;
        assert!(exchange.answers.iter().all(|answer| answer.status == 400), "{bytes:?}: {exchange:?}");
    }
    assert_eq!(charges.executions(), 0);
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn garbage_behind_the_preface_of_http_2_closes_the_connection() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let request = format!("{HEAD}idempotency-key: {SECRET}\r\n\r\n").into_bytes();
    let huge_frame = [0xff; 4096].to_vec();
    let headers_of_stream_0 = b"\0\0\x04\x01\x04\0\0\0\0\x82\x84\x86\x41".to_vec();
    for garbage in [request, huge_frame, headers_of_stream_0, vec![0; 4096]] {
        let bytes = [preface.as_slice(), &garbage].concat();
        let mut stream = charges.server().connect_and_send(&bytes).await;
        let mut received = Vec::new();
        // The end may be a reset, because the server closes without having read all bytes.
        let end = tokio::time::timeout(idempotent_tests::PATIENCE, stream.read_to_end(&mut received)).await;
        assert!(end.is_ok(), "the connection stays open: {}", received.escape_ascii());
    }
    assert_eq!(charges.executions(), 0);
    charges.is_unharmed(&logs).await;
}
