//! The body of a request that is not guarded: the guard reads none of it, like a handler without the attribute.

use std::fmt::Write as _;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::any;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, InvalidKeyPolicy, Policy, Registry, idempotent};
use idempotent_tests::{PATIENCE, Runs, Server, answer};
use reqwest::{Method, RequestBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Begins its run before it reads the body. It reads none that its client must be asked for.
async fn length(runs: &Runs, request: Request) -> String {
    let run = runs.run().await;
    if request.headers().contains_key(header::EXPECT) {
        return format!("run {run}: unread");
    }
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.expect("the body arrives");
    format!("run {run}: {}", body.len())
}

#[idempotent(scope = "unguarded-default")]
async fn by_default(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-header", header = "x-request-id")]
async fn by_header(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-header-json", header = "x-request-id", fingerprint = json)]
async fn by_header_json(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-methods", methods = [POST])]
async fn by_method(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-methods-required", methods = [POST], required)]
async fn by_method_required(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-any", methods = any)]
async fn by_any(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

fn key_of(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-key")?.to_str().ok()
}

#[idempotent(scope = "unguarded-expression", key = key_of(&headers), methods = [POST])]
async fn by_expression(State(runs): State<Runs>, headers: HeaderMap, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-caller", header = "x-request-id", caller = key_of(&headers))]
async fn with_caller(State(runs): State<Runs>, headers: HeaderMap, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-ignored", invalid_key = "ignore")]
async fn ignores(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-ignored-format", invalid_key = "ignore", key_format = "uuid")]
async fn ignores_other_formats(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-format", key_format = "uuid")]
async fn by_format(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-length", min_key_length = 4)]
async fn by_length(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-required", header = "x-request-id", required)]
async fn required(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-required-bytes", header = "x-request-id", required)]
async fn required_bytes(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-required-caller", header = "x-request-id", required, caller = body.len())]
async fn required_caller(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-required-any", methods = any, required)]
async fn required_any(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-bytes", header = "x-request-id")]
async fn bytes(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-bytes-caller", header = "x-request-id", caller = body.len())]
async fn bytes_caller(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

fn beneath(policy: Policy) -> Router<Runs> {
    let handler = async |State(runs): State<Runs>, request: Request| length(&runs, request).await;
    Router::new().route("/", any(handler)).layer(IdempotencyLayer::new(policy))
}

fn app(runs: &Runs, registry: &Registry) -> Router {
    let ignoring =
        Policy::builder("unguarded-beneath").invalid_key(InvalidKeyPolicy::Ignore).build().expect("it is valid");
    let posts = Policy::builder("unguarded-beneath-posts").methods([Method::POST]).header("x-request-id");
    Router::new()
        .route("/default", any(by_default))
        .route("/header", any(by_header))
        .route("/header-json", any(by_header_json))
        .route("/methods", any(by_method))
        .route("/methods-required", any(by_method_required))
        .route("/any", any(by_any))
        .route("/expression", any(by_expression))
        .route("/caller", any(with_caller))
        .route("/ignored", any(ignores))
        .route("/ignored-format", any(ignores_other_formats))
        .route("/format", any(by_format))
        .route("/length", any(by_length))
        .route("/required", any(required))
        .route("/required-bytes", any(required_bytes))
        .route("/required-caller", any(required_caller))
        .route("/required-any", any(required_any))
        .route("/bytes", any(bytes))
        .route("/bytes-caller", any(bytes_caller))
        .nest("/beneath", beneath(ignoring))
        .nest("/beneath-posts", beneath(posts.build().expect("it is valid")))
        .layer(DefaultBodyLimit::disable())
        .with_state(runs.clone())
        .layer(registry.layer())
}

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
