//! Clients that disconnect after each byte of a good request, and of two good requests.

use axum::http::StatusCode;
use idempotent_tests::{Logs, Raw};

use crate::raw_requests::charges::{Charges, PATHS, SECRET, request};

/// A request that keeps its connection alive.
fn kept_alive(key: &str) -> Vec<u8> {
    format!(
        "POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\n\r\n"
    )
    .into_bytes()
}

#[tokio::test]
async fn request_cut_off_at_any_byte_runs_once_if_whole() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    for path in PATHS {
        cut_off_behind_each_byte(&charges, path).await;
    }
    charges.is_unharmed(&logs).await;
}

async fn cut_off_behind_each_byte(charges: &Charges, path: &str) {
    let length = request(path, &format!("{SECRET}-000"), b"body").len();
    for end in 0..=length {
        let bytes = request(path, &format!("{SECRET}-{end:03}"), b"body");
        let before = charges.executions();
        charges.send(Raw::Leaves, &bytes[..end]).await;
        if end < length {
            assert_eq!(charges.executions(), before, "{end} of {length} bytes ran a handler");
        }
        let retry = charges.answer(&bytes).await;
        assert_eq!(retry.status, StatusCode::CREATED, "{end} of {length} bytes: {retry:?}");
        assert_eq!(charges.executions(), before + 1, "{end} of {length} bytes");
    }
}

#[tokio::test]
async fn cut_off_behind_each_byte_of_two_requests_each_runs_once() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let first = kept_alive(&format!("{SECRET}-000-a")).len();
    let length = first + request("/charges", &format!("{SECRET}-000-b"), b"body").len();
    for end in 0..=length {
        let bytes = [
            kept_alive(&format!("{SECRET}-{end:03}-a")),
            request("/charges", &format!("{SECRET}-{end:03}-b"), b"body"),
        ]
        .concat();
        let before = charges.executions();
        charges.send(Raw::Leaves, &bytes[..end]).await;
        let ran = charges.executions() - before;
        let whole = usize::from(end >= first) + usize::from(end == length);
        assert!(ran <= whole, "{end} of {length} bytes ran {ran} handlers");
        let retry = charges.send(Raw::UntilClosed, &bytes).await;
        let statuses: Vec<_> = retry.answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [StatusCode::CREATED; 2], "{end} of {length} bytes: {retry:?}");
        assert_eq!(charges.executions(), before + 2, "{end} of {length} bytes");
    }
    charges.is_unharmed(&logs).await;
}
