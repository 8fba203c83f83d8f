//! To which caller a key belongs, and which requests are equal: callers, credentials, expressions, media types.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, MemoryStore, Store, Token};
use idempotent_runtime::testing::decoders::fingerprint_of_nothing;
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, idempotent};
use idempotent_tests::{Answer, Logs, Runs, Server, answer};
use reqwest::RequestBuilder;

#[idempotent(scope = "identity-charges")]
async fn charge(State(runs): State<Runs>, body: String) -> String {
    format!("{} bytes, run {}", body.len(), runs.run().await)
}

#[idempotent(scope = "identity-releases", cache = [201])]
async fn never_recorded(idempotency: Idempotency, _body: String) -> String {
    idempotency.downstream_key("network")
}

async fn plain(idempotency: Idempotency, _body: String) -> String {
    idempotency.downstream_key("network")
}

#[idempotent(scope = "identity-at-most-once", after_crash = "reject", fingerprint = none)]
async fn at_most_once() -> &'static str {
    "charged"
}

#[derive(serde::Deserialize)]
struct Transfer {
    amount: u64,
    share: Option<f64>,
    memo: Option<serde_json::Value>,
}

#[idempotent(scope = "identity-transfers", fingerprint = (transfer.amount, &transfer.memo))]
async fn transfer(State(runs): State<Runs>, Path(id): Path<u32>, Json(transfer): Json<Transfer>) -> String {
    format!("{} from {id}, run {}", transfer.amount, runs.run().await)
}

#[idempotent(scope = "identity-only", fingerprint = only(transfer.amount))]
async fn transfer_only(State(runs): State<Runs>, Path(_id): Path<u32>, Json(transfer): Json<Transfer>) -> String {
    format!("{}, run {}", transfer.amount, runs.run().await)
}

#[idempotent(scope = "identity-json", fingerprint = json)]
async fn by_json(State(runs): State<Runs>, _body: String) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "identity-floats", fingerprint = transfer.share.map_or(f64::NAN, |share| share / 0.0))]
async fn not_finite(State(runs): State<Runs>, Json(transfer): Json<Transfer>) -> String {
    format!("{} of {}, run {}", transfer.share.is_some(), transfer.amount, runs.run().await)
}

fn routes(runs: &Runs) -> Router {
    Router::new()
        .route("/charges", post(charge))
        .route("/releases", post(never_recorded))
        .route("/at-most-once", post(at_most_once))
        .route("/transfers/{id}", post(transfer))
        .route("/only/{id}", post(transfer_only))
        .route("/json", post(by_json))
        .route("/floats", post(not_finite))
        .with_state(runs.clone())
}

async fn serve(runs: &Runs) -> Server {
    Server::start(routes(runs).layer(Registry::new(MemoryStore::new()).layer())).await
}

fn keyed(server: &Server, path: &str) -> RequestBuilder {
    server.post(path).header("idempotency-key", "k")
}

async fn with(server: &Server, path: &str, name: &str, value: &str) -> Answer {
    answer(keyed(server, path).header(name, value).body("tea")).await
}

#[tokio::test]
async fn other_credentials_of_any_kind_are_never_replayed() {
    let logs = Logs::collect();
    let (runs, mut expected) = (Runs::free(), 0);
    for header in ["authorization", "proxy-authorization", "cookie", "x-api-key"] {
        let server = serve(&runs).await;
        assert_eq!(with(&server, "/charges", header, "acme-secret").await.status, StatusCode::OK);
        let other = with(&server, "/charges", header, "globex-secret").await;
        assert_eq!((other.status, other.rejection().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "other_credentials"));
        let detail = other.json()["detail"].as_str().expect("text").to_owned();
        assert!(detail.contains("Retry with the credentials of the first request"), "{detail}");
        assert!(!detail.to_lowercase().contains("new key"), "{detail}");
        assert!(with(&server, "/charges", header, "acme-secret").await.is_replay());
        expected += 1;
        assert_eq!(runs.started(), expected);
        assert!(logs.text().contains(&format!("differs=\"credentials\" header=\"{header}\"")), "{}", logs.text());
    }
    assert!(!logs.text().contains("-secret"));
}

#[tokio::test]
async fn another_host_or_body_is_key_reused_and_the_log_says_which() {
    let logs = Logs::collect();
    let server = serve(&Runs::free()).await;
    assert_eq!(with(&server, "/charges", "host", "a.example:3000").await.status, StatusCode::OK);
    assert!(with(&server, "/charges", "host", "A.example:4000").await.is_replay(), "another port of the same service");
    assert_eq!(with(&server, "/charges", "host", "b.example").await.rejection(), "key_reused");
    assert!(logs.text().contains("differs=\"target\""));
    assert!(!logs.text().contains("differs=\"body\""));
    let other = answer(keyed(&server, "/charges").header("host", "a.example").body("ham")).await;
    assert_eq!(other.rejection(), "key_reused");
    assert!(!other.text().to_lowercase().contains("new key"), "{}", other.text());
    assert!(logs.text().contains("differs=\"body\""));
}

#[tokio::test]
async fn credential_headers_can_be_replaced() {
    let registry = Registry::builder(MemoryStore::new()).credential_headers(["X-Tenant"]).build();
    let server = Server::start(routes(&Runs::free()).layer(registry.layer())).await;
    assert_eq!(with(&server, "/charges", "x-tenant", "acme").await.status, StatusCode::OK);
    assert_eq!(with(&server, "/charges", "x-tenant", "globex").await.rejection(), "other_credentials");
    let request = keyed(&server, "/charges").header("x-tenant", "acme").header("cookie", "fresh=1").body("tea");
    assert!(answer(request).await.is_replay(), "a cookie does not count here");
}

#[tokio::test]
async fn lines_of_credentials_are_never_run_together() {
    let server = serve(&Runs::free()).await;
    let cookies = async |lines: &[&str]| {
        let request = lines.iter().fold(keyed(&server, "/charges"), |request, line| request.header("x-api-key", *line));
        answer(request.body("tea")).await
    };
    assert_eq!(cookies(&["ab", "c"]).await.status, StatusCode::OK);
    for other in [&["a", "bc"][..], &["abc"], &["c", "ab"], &["ab"], &[]] {
        assert_eq!(cookies(other).await.rejection(), "other_credentials", "{other:?}");
    }
}

/// With HTTP/2, each cookie may have its own header line.
#[tokio::test]
async fn cookies_in_several_lines_are_those_in_one() {
    let server = serve(&Runs::free()).await;
    let cookies = async |lines: &[&str]| {
        let request = lines.iter().fold(keyed(&server, "/charges"), |request, line| request.header("cookie", *line));
        answer(request.body("tea")).await
    };
    assert_eq!(cookies(&["a=1", "b=2", "c=3"]).await.status, StatusCode::OK);
    for same in [&["a=1; b=2; c=3"][..], &["a=1; b=2", "c=3"]] {
        assert!(cookies(same).await.is_replay(), "{same:?}");
    }
    for other in [&["a=1", "c=3", "b=2"][..], &["a=1b=2; c=3"], &["a=1; b=2"], &[]] {
        assert_eq!(cookies(other).await.rejection(), "other_credentials", "{other:?}");
    }
}

#[tokio::test]
async fn host_beside_an_authority_counts_where_it_differs() {
    let server = serve(&Runs::free()).await;
    let ask = async |target: &str, host: &str| {
        let head = format!("POST {target} HTTP/1.1\r\nhost: {host}\r\nidempotency-key: k\r\nconnection: close");
        server.raw(format!("{head}\r\ncontent-length: 3\r\n\r\ntea").as_bytes()).await
    };
    let first = ask("/charges", "a.example").await;
    assert!(first.contains("run 1") && !first.contains("idempotent-replayed"), "{first}");
    let same = ask("http://A.example:80/charges", "a.EXAMPLE:3000").await;
    assert!(same.contains("idempotent-replayed"), "{same}");
    for (target, host) in [("http://a.example/charges", "b.example"), ("http://b.example/charges", "a.example")] {
        let other = ask(target, host).await;
        assert!(other.contains("key_reused"), "{other}");
    }
}

fn tenant(parts: &Parts) -> Option<String> {
    Some(parts.headers.get("x-tenant")?.to_str().ok()?.to_owned())
}

#[tokio::test]
async fn registry_caller_partitions_keys_and_frees_credentials() {
    let registry = Registry::builder(MemoryStore::new()).caller(tenant).max_in_flight_per_caller(1).build();
    let runs = Runs::held();
    let server = Server::start(routes(&runs).layer(registry.layer())).await;
    let send = |tenant: Option<&str>, token: &str, key: &str| {
        let request = server.post("/charges").header("idempotency-key", key).header("authorization", token);
        let request = match tenant {
            Some(tenant) => request.header("x-tenant", tenant),
            None => request,
        };
        answer(request.body("tea"))
    };
    let first = tokio::spawn(send(Some("acme"), "one", "k"));
    runs.until_started(1).await;
    assert_eq!(send(Some("acme"), "two", "other").await.rejection(), "too_many_in_flight", "counted by caller");
    let second = tokio::spawn(send(Some("globex"), "one", "k"));
    let third = tokio::spawn(send(None, "one", "k"));
    runs.until_started(3).await;
    runs.let_finish(3);
    for request in [first, second, third] {
        assert_eq!(request.await.expect("the task ends").status, StatusCode::OK);
    }
    assert!(send(Some("acme"), "renewed", "k").await.is_replay());
    assert!(send(None, "one", "k").await.is_replay());
    assert_eq!(send(None, "renewed", "k").await.rejection(), "other_credentials", "it has no caller");
}

#[tokio::test]
async fn a_layer_takes_caller_and_key_from_the_head() {
    let runs = Runs::free();
    let policy = Policy::builder("identity-layer").required().build().expect("it is valid");
    let layer = IdempotencyLayer::new(policy)
        .with_registry(Registry::new(MemoryStore::new()))
        .caller(tenant)
        .key(|parts| parts.uri.path().strip_prefix("/deliveries/").filter(|id| !id.is_empty()).map(str::to_owned));
    let handler = async |State(runs): State<Runs>| format!("run {}", runs.run().await);
    let app = Router::new().route("/deliveries/{*id}", post(handler)).route("/deliveries/", post(handler));
    let server = Server::start(app.with_state(runs.clone()).layer(layer)).await;
    let send = |path: &str, tenant: &str| answer(server.post(path).header("x-tenant", tenant));
    assert_eq!(send("/deliveries/7", "acme").await.text(), "run 1");
    assert!(send("/deliveries/7", "acme").await.is_replay());
    assert_eq!(send("/deliveries/7", "globex").await.text(), "run 2");
    assert_eq!(send("/deliveries/8", "acme").await.text(), "run 3");
    assert_eq!(send("/deliveries/", "acme").await.rejection(), "missing_key");
}

#[tokio::test]
async fn other_credentials_of_a_crashed_request_are_told_apart() {
    let store = Arc::new(MemoryStore::new());
    let server = Server::start(routes(&Runs::free()).layer(Registry::new(Arc::clone(&store)).layer())).await;
    let key = RecordKey::new("identity-at-most-once", None, "k");
    let request = ClaimRequest::new(Token::unique(), fingerprint_of_nothing(&key))
        .with_lease(std::time::Duration::ZERO)
        .with_ttl(std::time::Duration::from_hours(1))
        .with_after_crash(AfterCrash::Reject);
    assert_eq!(store.claim(&key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
    assert_eq!(with(&server, "/at-most-once", "cookie", "session=1").await.rejection(), "other_credentials");
    assert_eq!(server.post_with_key("/at-most-once", "k").await.rejection(), "outcome_unknown");
}

async fn json(server: &Server, path: &str, content_type: &str, body: &'static str) -> Answer {
    answer(keyed(server, path).header("content-type", content_type).body(body)).await
}

#[tokio::test]
async fn an_expression_counts_with_the_path_unless_only() {
    const JSON: &str = "application/json";
    let server = serve(&Runs::free()).await;
    let body = r#"{"amount":5,"memo":{"a":1,"b":0.5}}"#;
    assert_eq!(json(&server, "/transfers/1", JSON, body).await.text(), "5 from 1, run 1");
    assert_eq!(json(&server, "/transfers/2", JSON, body).await.rejection(), "key_reused");
    assert!(json(&server, "/transfers/1?x", JSON, r#"{"memo":{"b":0.5,"a":1},"amount":5}"#).await.is_replay());
    assert_eq!(json(&server, "/transfers/1", JSON, r#"{"amount":5,"memo":{"a":1}}"#).await.rejection(), "key_reused");
    assert_eq!(json(&server, "/only/1", JSON, r#"{"amount":9007199254740993}"#).await.status, StatusCode::OK);
    assert!(json(&server, "/only/2", JSON, r#"{"amount":9007199254740993}"#).await.is_replay());
    assert_eq!(json(&server, "/only/1", JSON, r#"{"amount":9007199254740992}"#).await.rejection(), "key_reused");
}

#[tokio::test]
async fn an_expression_that_is_not_finite_runs_nothing() {
    let (logs, runs) = (Logs::collect(), Runs::free());
    let server = serve(&runs).await;
    for body in [r#"{"amount":5}"#, r#"{"amount":5,"share":0.5}"#] {
        let answer = json(&server, "/floats", "application/json", body).await;
        assert_eq!(
            (answer.status, answer.rejection().as_str()),
            (StatusCode::INTERNAL_SERVER_ERROR, "fingerprint_failed")
        );
    }
    assert_eq!(runs.started(), 0);
    assert_eq!(logs.of_level("ERROR").len(), 2, "{}", logs.text());
}

#[tokio::test]
async fn json_is_compared_in_its_canonical_form() {
    let sent = async |content_type: &str, first: &'static str, second: &'static str| {
        let server = serve(&Runs::free()).await;
        assert_eq!(json(&server, "/json", content_type, first).await.status, StatusCode::OK);
        json(&server, "/json", content_type, second).await.is_replay()
    };
    for content_type in ["application/json", "application/json; charset=utf-8", "application/vnd.acme+json"] {
        assert!(
            sent(content_type, r#"{"a":1,"b":[true,null,{}]}"#, r#" {"b" : [true,null,{ }],"\u0061":1.0e0} "#).await
        );
    }
    for (first, second) in [
        (r#"{"id":9007199254740992}"#, r#"{"id":9007199254740993}"#),
        (r#"{"id":18446744073709551616}"#, r#"{"id":18446744073709551617}"#),
        ("0.1", "0.10000000000000000001"),
        (r#"["a","b"]"#, r#"["b","a"]"#),
        (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
        (r#"{"a":1,"a":1}"#, r#"{"a":1, "a":1}"#),
        ("{\"a\":1", "{ \"a\":1"),
        (r#""1""#, "1"),
        ("-1", "1"),
        ("10", "1"),
        ("[[]]", "[]"),
    ] {
        assert!(!sent("application/json", first, second).await, "{first} and {second}");
    }
    assert!(!sent("text/plain", r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#).await, "it is not declared as JSON");
}

#[tokio::test]
async fn the_media_type_must_be_repeated() {
    let server = serve(&Runs::free()).await;
    assert_eq!(json(&server, "/charges", "text/csv; header=present", "tea").await.status, StatusCode::OK);
    assert!(json(&server, "/charges", "Text/CSV;header=\"present\"", "tea").await.is_replay());
    for other in ["text/plain", "text/csv", "text/csv; header=absent", "no media type"] {
        assert_eq!(json(&server, "/charges", other, "tea").await.rejection(), "key_reused", "{other}");
    }
}

#[tokio::test]
async fn the_content_coding_must_be_repeated() {
    let server = serve(&Runs::free()).await;
    let coded = async |coding: &str| with(&server, "/charges", "content-encoding", coding).await;
    assert_eq!(coded("gzip, br").await.status, StatusCode::OK);
    assert!(coded("GZIP,identity,BR").await.is_replay());
    for other in ["gzip", "br, gzip", "gzipbr", "identity"] {
        assert_eq!(coded(other).await.rejection(), "key_reused", "{other}");
    }
    let uncoded = answer(keyed(&server, "/charges").body("tea")).await;
    assert_eq!(uncoded.rejection(), "key_reused");

    // An encoded body is not JSON yet.
    let json = async |body: &'static str| {
        let request =
            keyed(&server, "/json").header("content-type", "application/json").header("content-encoding", "x");
        answer(request.body(body)).await
    };
    assert_eq!(json(r#"{"a":1,"b":2}"#).await.status, StatusCode::OK);
    assert_eq!(json(r#"{"b":2,"a":1}"#).await.rejection(), "key_reused");
}

#[tokio::test]
async fn a_delimiter_that_is_content_makes_the_boundary_count() {
    let server = serve(&Runs::free()).await;
    let form = async |boundary: &str, content: &str| {
        let body = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n{content}\r\n--{boundary}--\r\n"
        );
        let content_type = format!("multipart/form-data; boundary={boundary}");
        answer(keyed(&server, "/charges").header("content-type", content_type).body(body)).await
    };
    assert_eq!(form("X", "--XY").await.status, StatusCode::OK);
    assert_eq!(form("Z", "--ZY").await.rejection(), "key_reused");
    assert_eq!(form("Z", "--XY").await.rejection(), "key_reused", "it can be read in two ways under X");
    assert!(form("X", "--XY").await.is_replay());
}

#[tokio::test]
async fn downstream_key_differs_by_client_and_request_not_attempt() {
    let policy = Policy::builder("identity-downstream-layer").cache([201]).build().expect("it is valid");
    let registry = Registry::new(MemoryStore::new());
    let layered = Router::new().route("/layered", post(plain)).layer(IdempotencyLayer::new(policy));
    let server = Server::start(routes(&Runs::free()).merge(layered).layer(registry.layer())).await;
    for path in ["/releases", "/layered"] {
        let send = async |key: &str, user: &str, body: &'static str| {
            let request = server.request(Method::POST, path).header("idempotency-key", key);
            answer(request.header("authorization", user).body(body)).await.text().to_owned()
        };
        let first = send("k", "alice", "tea").await;
        assert_eq!(send("k", "alice", "tea").await, first, "another attempt");
        let others =
            [send("k", "alice", "ham").await, send("k", "bob", "tea").await, send("other", "alice", "tea").await];
        assert!(!others.contains(&first), "{path}: {others:?}");
    }
}
