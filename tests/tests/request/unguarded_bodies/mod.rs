//! The body of a request that is not guarded: the guard reads none of it, like a handler without the attribute.

mod handlers;

use std::fmt::Write as _;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::any;
use idempotent_runtime::Registry;
use idempotent_runtime::store::MemoryStore;
use idempotent_tests::{PATIENCE, Runs, Server, answer};
use reqwest::{Method, RequestBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use self::handlers::{app, by_header, bytes, bytes_caller};

async fn serve(runs: &Runs) -> Server {
    Server::start(app(runs, &Registry::new(MemoryStore::new()))).await
}

fn head(method: &str, path: &str, headers: &[&str]) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: h\r\nauthorization: alice\r\nconnection: close\r\n");
    head += "transfer-encoding: chunked\r\n";
    for header in headers {
        write!(head, "{header}\r\n").expect("text grows");
    }
    head + "\r\n"
}

const KEY: &str = "idempotency-key: k";

/// Requests that are not guarded.
const UNGUARDED: [(&str, &str, &[&str]); 15] = [
    ("POST", "/default", &[]),
    ("GET", "/default", &[KEY]),
    ("POST", "/header", &[]),
    ("POST", "/header", &[KEY]),
    ("GET", "/header", &["x-request-id: k"]),
    ("POST", "/header-json", &["content-type: application/json"]),
    ("PUT", "/methods", &[KEY]),
    ("PUT", "/methods-required", &[KEY]),
    ("PUT", "/methods-required", &[]),
    ("GET", "/any", &[]),
    ("PUT", "/expression", &["x-key: k"]),
    ("POST", "/caller", &["x-key: alice"]),
    ("POST", "/ignored", &["idempotency-key: undefined"]),
    ("POST", "/ignored-format", &[KEY]),
    ("POST", "/beneath", &["idempotency-key: undefined"]),
];

#[tokio::test]
async fn unguarded_handler_begins_before_its_body() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for (index, (method, path, headers)) in UNGUARDED.into_iter().enumerate() {
        let run = index + 1;
        println!("{method} {path} {headers:?}");
        let mut client = server.connect_and_send(head(method, path, headers).as_bytes()).await;
        runs.until_started(run).await;
        client.write_all(b"5\r\n12345\r\n0\r\n\r\n").await.expect("the server reads");
        let mut received = String::new();
        client.read_to_string(&mut received).await.expect("the server answers");
        assert!(received.starts_with("HTTP/1.1 200") && received.contains(&format!("run {run}: 5")), "{received}");
    }
}

#[tokio::test]
async fn unguarded_client_that_expects_100_gets_the_answer() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for (index, (method, path, headers)) in UNGUARDED.into_iter().enumerate() {
        let headers = [headers, &["expect: 100-continue"]].concat();
        let received = timeout(PATIENCE, server.raw(head(method, path, &headers).as_bytes())).await;
        let received = received.unwrap_or_else(|_| panic!("no answer to {method} {path} {headers:?}"));
        let expected = format!("run {}: unread", index + 1);
        assert!(received.starts_with("HTTP/1.1 200") && received.contains(&expected), "{method} {path}: {received}");
    }
}

/// The body has no end, and the client sends it for as long as the server reads.
async fn answer_to_endless_body(server: &Server, head: &str) -> String {
    let (mut reading, mut writing) = server.connect_and_send(head.as_bytes()).await.into_split();
    let sending = async {
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        while writing.write_all(chunk.as_bytes()).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let mut received = Vec::new();
    let receiving = async {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reading.read(&mut buffer).await {
            received.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::select! {
        () = sending => {}
        ended = timeout(PATIENCE, receiving) => ended.expect("the server answers before the body ends"),
    }
    String::from_utf8(received).expect("it is text")
}

#[tokio::test]
async fn missing_key_is_rejected_before_the_body() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for path in ["/required", "/required-bytes", "/required-caller", "/required-any"] {
        for headers in [&[][..], &["expect: 100-continue"]] {
            let head = head("POST", path, headers);
            let received = timeout(PATIENCE, server.raw(head.as_bytes())).await.expect("it is answered at once");
            assert!(received.starts_with("HTTP/1.1 400") && received.contains("missing_key"), "{path}: {received}");
        }
        let received = answer_to_endless_body(&server, &head("POST", path, &[])).await;
        assert!(received.starts_with("HTTP/1.1 400") && received.contains("missing_key"), "{path}: {received}");
    }
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn malformed_key_is_rejected_before_the_body() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let undefined = ["/default", "/header", "/required-bytes", "/required-caller", "/any", "/bytes", "/beneath-posts"];
    let all = undefined.map(|path| (path, "undefined")).into_iter().chain([("/format", "k"), ("/length", "k")]);
    for (path, key) in all {
        let [default, own] = ["idempotency-key", "x-request-id"].map(|name| format!("{name}: {key}"));
        let head = head("POST", path, &[&default, &own, "expect: 100-continue"]);
        let received = timeout(PATIENCE, server.raw(head.as_bytes())).await;
        let received = received.unwrap_or_else(|_| panic!("{path} answers without the body"));
        assert!(received.starts_with("HTTP/1.1 400") && received.contains("invalid_key"), "{path}: {received}");
    }
    assert_eq!(runs.started(), 0);
}

/// A request of the same caller, whose body is large enough to need a permit.
fn large(request: RequestBuilder) -> RequestBuilder {
    request.header("authorization", "alice").body(vec![b'x'; 1 << 20])
}

#[tokio::test]
async fn upload_without_a_key_takes_no_permit_of_its_caller() {
    let runs = Runs::free();
    let registry = Registry::builder(MemoryStore::new()).max_in_flight_per_caller(1).build();
    let server = Server::start(app(&runs, &registry)).await;
    for (index, (method, path, headers)) in UNGUARDED.into_iter().enumerate() {
        let mut upload = server.connect_and_send(head(method, path, headers).as_bytes()).await;
        runs.until_started(2 * index + 1).await;
        let run = 2 * index + 2;
        let keyed = server.post("/default").header("idempotency-key", format!("k{run}"));
        let keyed = answer(large(keyed).timeout(PATIENCE)).await;
        assert_eq!((keyed.status, keyed.text()), (StatusCode::OK, &*format!("run {run}: {}", 1 << 20)), "{path}");
        upload.write_all(b"0\r\n\r\n").await.expect("the server reads");
        upload.read_to_end(&mut Vec::new()).await.expect("the server answers");
    }
}

#[tokio::test]
async fn keyed_bodies_are_still_part_of_the_fingerprint() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let keyed = [
        ("GET", "/any", "idempotency-key"),
        ("POST", "/methods", "idempotency-key"),
        ("POST", "/header", "x-request-id"),
        ("PATCH", "/header-json", "x-request-id"),
        ("POST", "/expression", "x-key"),
        ("POST", "/caller", "x-request-id"),
        ("PUT", "/bytes", "x-request-id"),
        ("PUT", "/ignored", "idempotency-key"),
        ("PUT", "/length", "idempotency-key"),
        ("POST", "/beneath-posts", "x-request-id"),
    ];
    for (index, (method, path, header)) in keyed.into_iter().enumerate() {
        let method = Method::from_bytes(method.as_bytes()).expect("it is a method");
        let send = |body: &'static str| answer(server.request(method.clone(), path).header(header, "key-1").body(body));
        let first = send("12345").await;
        assert_eq!(first.text(), format!("run {}: 5", index + 1), "{path}");
        assert!(send("12345").await.is_replay(), "{path}");
        assert_eq!(send("54321").await.rejection(), "key_reused", "{path}");
    }
    assert_eq!(runs.started(), keyed.len());
}

/// A handler whose key is in another header answers like one with the default header.
#[tokio::test]
async fn keyed_body_that_is_too_large_is_rejected_unrecorded() {
    let runs = Runs::free();
    let app = Router::new()
        .route("/request", any(by_header))
        .route("/bytes", any(bytes))
        .route("/bytes-caller", any(bytes_caller))
        .layer(DefaultBodyLimit::max(5_000))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    for path in ["/request", "/bytes", "/bytes-caller"] {
        let send = |length| answer(server.post(path).header("x-request-id", "k").body(vec![b'x'; length]));
        for _ in 0..2 {
            let rejected = send(5_001).await;
            assert_eq!((rejected.status, rejected.is_replay()), (StatusCode::PAYLOAD_TOO_LARGE, false), "{path}");
        }
        assert_eq!(send(5_000).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(runs.started(), 3);
}

/// Two uploads of one caller have to share one permit. The second one is rejected before its expression is evaluated.
#[tokio::test]
async fn keyed_upload_waits_for_the_permit_of_its_caller() {
    let runs = Runs::free();
    let registry = Registry::builder(MemoryStore::new()).max_in_flight_per_caller(1).build();
    let server = Server::start(app(&runs, &registry)).await;
    for path in ["/header", "/bytes", "/caller", "/bytes-caller"] {
        let started = runs.started();
        let first = head("POST", path, &["x-request-id: first"]);
        let mut upload = server.connect_and_send(first.as_bytes()).await;
        // The body is read, so its first bytes are taken off the connection while the permit is held.
        upload.write_all(b"5\r\n12345\r\n").await.expect("the server reads");
        let send = || answer(large(server.post(path).header("x-request-id", "second")));
        idempotent_tests::eventually(async || send().await.status, |&status| status == StatusCode::TOO_MANY_REQUESTS)
            .await;
        upload.write_all(b"0\r\n\r\n").await.expect("the server reads");
        let mut received = String::new();
        upload.read_to_string(&mut received).await.expect("the server answers");
        assert!(received.starts_with("HTTP/1.1 200") && received.contains(": 5"), "{path}: {received}");
        assert!(runs.started() > started, "{path}");
    }
}
