//! What a retry must repeat, and to which caller a key belongs.

use axum::extract::{DefaultBodyLimit, FromRequestParts, Multipart, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{any, post};
use axum::{Json, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer};
use reqwest::Method;

#[idempotent(scope = "fingerprints-default", methods = any)]
async fn by_request(State(runs): State<Runs>, body: String) -> String {
    format!("{} bytes, run {}", body.len(), runs.run().await)
}

#[derive(serde::Deserialize)]
struct Order {
    amount: u64,
    currency: String,
    note: Option<String>,
}

#[idempotent(scope = "fingerprints-expression", fingerprint = (&order.amount, &order.currency))]
async fn by_expression(State(runs): State<Runs>, Json(order): Json<Order>) -> String {
    format!("{} noted, run {}", order.note.unwrap_or_default(), runs.run().await)
}

#[idempotent(scope = "none", fingerprint = none)]
async fn by_nothing(State(runs): State<Runs>, request: Request) -> String {
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.expect("the body arrives");
    format!("{} bytes, run {}", body.len(), runs.run().await)
}

#[idempotent(scope = "multipart")]
async fn by_multipart(State(runs): State<Runs>, mut form: Multipart) -> Result<String, StatusCode> {
    let mut fields = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|_| StatusCode::BAD_REQUEST)? {
        let name = field.name().unwrap_or_default().to_owned();
        fields.push(format!("{name}={}", field.text().await.map_err(|_| StatusCode::BAD_REQUEST)?));
    }
    Ok(format!("{}, run {}", fields.join("&"), runs.run().await))
}

struct User(u32);

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let credentials = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
        let id = credentials.and_then(|value| value.strip_prefix("Bearer user-"));
        id.and_then(|id| id.split('.').next()?.parse().ok()).map(Self).ok_or(StatusCode::UNAUTHORIZED)
    }
}

#[idempotent(scope = "callers", caller = user.0)]
async fn by_caller(State(runs): State<Runs>, user: User) -> String {
    format!("user {}, run {}", user.0, runs.run().await)
}

#[idempotent(scope = "nested")]
async fn nested(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[derive(serde::Deserialize)]
struct Size {
    width: usize,
}

#[derive(serde::Serialize)]
struct Shape {
    width: usize,
    ratio: f64,
}

#[idempotent(scope = "shapes", fingerprint = Shape { width: size.width, ratio: 0.5 })]
async fn by_shape(State(runs): State<Runs>, Query(size): Query<Size>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "whole-request")]
async fn by_whole_request(State(runs): State<Runs>, request: Request) -> Result<String, StatusCode> {
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(format!("{} bytes, run {}", body.len(), runs.run().await))
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/default", any(by_request))
        .route("/default/{id}", any(by_request))
        .route("/expression", post(by_expression))
        .route("/none", post(by_nothing))
        .route("/whole-request", post(by_whole_request))
        .route("/multipart", post(by_multipart))
        .route("/callers", post(by_caller))
        .route("/shapes/{id}", post(by_shape))
        .route("/small", post(by_request).layer(DefaultBodyLimit::max(10)))
        .nest("/a", Router::new().route("/nested", post(nested)))
        .nest("/b", Router::new().route("/nested", post(nested)))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    Server::start(app).await
}

async fn send(server: &Server, method: Method, target: &str, body: &'static str) -> Answer {
    answer(server.request(method, target).header("idempotency-key", "k").body(body)).await
}

#[tokio::test]
async fn method_path_query_and_body_must_be_repeated() {
    let server = serve(&Runs::free()).await;
    assert_eq!(send(&server, Method::POST, "/default?a=1", "tea").await.text(), "3 bytes, run 1");
    assert!(send(&server, Method::POST, "/default?a=1", "tea").await.is_replay());
    for (method, target, body) in [
        (Method::PUT, "/default?a=1", "tea"),
        (Method::POST, "/default/7?a=1", "tea"),
        (Method::POST, "/default?a=2", "tea"),
        (Method::POST, "/default", "tea"),
        (Method::POST, "/default?a=1", "ham"),
        (Method::POST, "/default?a=1", ""),
        (Method::POST, "/default?a=1", "tea "),
    ] {
        let answer = send(&server, method.clone(), target, body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{method} {target} {body}");
        assert_eq!(answer.rejection(), "key_reused");
    }
    assert!(send(&server, Method::POST, "/default?a=1", "tea").await.is_replay(), "rejections change nothing");
}

/// A body of more than 8 KiB is digested with another algorithm.
#[tokio::test]
async fn a_long_body_must_be_repeated_to_its_last_byte() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let send = async |key: &str, body: &[u8]| {
        answer(server.post("/default").header("idempotency-key", key).body(body.to_vec())).await
    };
    for length in [8 * 1024, 8 * 1024 + 1, 100_000, 1_000_000] {
        let (key, body) = (length.to_string(), vec![b'x'; length]);
        assert!(!send(&key, &body).await.is_replay());
        for changed in [0, length / 2, length - 1] {
            let mut other = body.clone();
            other[changed] = b'y';
            assert_eq!(send(&key, &other).await.rejection(), "key_reused", "byte {changed} of {length}");
        }
        for other in [&body[1..], &[&body[..], b"x"].concat()] {
            assert_eq!(send(&key, other).await.rejection(), "key_reused", "{} bytes in place of {length}", other.len());
        }
        assert!(send(&key, &body).await.is_replay());
    }
    assert_eq!(runs.started(), 4);
}

#[tokio::test]
async fn an_expression_is_all_that_must_be_repeated() {
    let server = serve(&Runs::free()).await;
    let order = |body: &'static str| {
        answer(
            server
                .post("/expression")
                .header("idempotency-key", "k")
                .header("content-type", "application/json")
                .body(body),
        )
    };
    assert_eq!(order(r#"{"amount":5,"currency":"EUR","note":"x"}"#).await.text(), "x noted, run 1");
    assert!(order(r#"{"note":"y","currency":"EUR","amount":5}"#).await.is_replay());
    assert_eq!(order(r#"{"amount":6,"currency":"EUR"}"#).await.rejection(), "key_reused");
    assert_eq!(order(r#"{"amount":5,"currency":"USD"}"#).await.rejection(), "key_reused");
}

#[tokio::test]
async fn expression_is_compared_with_method_and_path_not_query() {
    let server = serve(&Runs::free()).await;
    assert!(!server.post_with_key("/shapes/1?width=1", "k").await.is_replay());
    assert!(server.post_with_key("/shapes/1?width=1&x=1", "k").await.is_replay());
    assert_eq!(server.post_with_key("/shapes/1?width=2", "k").await.rejection(), "key_reused");
    assert_eq!(server.post_with_key("/shapes/2?width=1", "k").await.rejection(), "key_reused");
}

#[tokio::test]
async fn no_fingerprint_replays_whatever_comes() {
    let server = serve(&Runs::free()).await;
    assert_eq!(send(&server, Method::POST, "/none", "tea").await.text(), "3 bytes, run 1");
    assert_eq!(send(&server, Method::POST, "/none?other", "something else").await.text(), "3 bytes, run 1");
}

#[tokio::test]
async fn no_fingerprint_still_keeps_another_authorization_out() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let as_user = |token: &'static str| {
        answer(server.post("/none").header("idempotency-key", "k").header("authorization", token))
    };
    assert_eq!(as_user("Bearer alice").await.status, StatusCode::OK);
    assert_eq!(as_user("Bearer mallory").await.rejection(), "other_credentials");
    assert!(as_user("Bearer alice").await.is_replay());
}

#[tokio::test]
async fn another_authorization_never_sees_a_record() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let as_user = |token: Option<&'static str>| {
        let request = server.post("/default").header("idempotency-key", "k").body("tea");
        answer(match token {
            Some(token) => request.header("authorization", token),
            None => request,
        })
    };
    assert_eq!(as_user(Some("Bearer alice")).await.text(), "3 bytes, run 1");
    for other in [Some("Bearer mallory"), Some("Bearer Alice"), Some(""), None] {
        let answer = as_user(other).await;
        assert_eq!(answer.rejection(), "other_credentials", "{other:?}");
        assert!(!answer.text().contains("run 1"));
    }
    assert!(as_user(Some("Bearer alice")).await.is_replay());
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn callers_have_their_own_keys_and_may_change_credentials() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let as_user = |token: &'static str| {
        answer(server.post("/callers").header("idempotency-key", "k").header("authorization", token))
    };
    assert_eq!(as_user("Bearer user-1").await.text(), "user 1, run 1");
    assert_eq!(as_user("Bearer user-2").await.text(), "user 2, run 2");
    assert_eq!(as_user("Bearer user-1.refreshed").await.text(), "user 1, run 1");
    assert_eq!(as_user("unknown").await.status, StatusCode::UNAUTHORIZED, "authentication comes before every replay");
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_multipart_body_is_compared_without_its_boundary() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let form = |boundary: &str, amount: &str, quoted: bool| {
        let body = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"amount\"\r\n\r\n{amount}\r\n\
             --{boundary}\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nnot --{boundary} a delimiter\r\n\
             --{boundary}--\r\n"
        );
        let content_type = if quoted {
            format!("multipart/form-data; boundary=\"{boundary}\"")
        } else {
            format!("multipart/form-data; boundary={boundary}")
        };
        answer(server.post("/multipart").header("idempotency-key", "k").header("content-type", content_type).body(body))
    };
    let first = form("aaaa", "5", false).await;
    assert_eq!(first.text(), "amount=5&note=not --aaaa a delimiter, run 1");
    // The content contains the boundary here too, but in the middle of a line, where it is no delimiter. So the content
    // differs.
    assert_eq!(form("bbbb", "5", false).await.rejection(), "key_reused");
    assert!(form("aaaa", "5", true).await.is_replay());
    assert_eq!(form("aaaa", "6", false).await.rejection(), "key_reused");
    assert_eq!(runs.started(), 1);
}

/// axum uses the first boundary, and other readers use the last one.
#[tokio::test]
async fn media_type_with_two_boundaries_is_rejected() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let send = |other: &str, parameters: String| {
        let body = format!(
            "--X\r\ncontent-disposition: form-data; name=\"amount\"\r\n\r\n\
             5\r\n--{other}\r\n5\r\n--{other}--\r\n\r\n--X--\r\n"
        );
        let content_type = format!("multipart/form-data; {parameters}");
        answer(server.post("/multipart").header("idempotency-key", "k").header("content-type", content_type).body(body))
    };
    for other in ["v", "w"] {
        for parameters in [
            format!("boundary=X; boundary={other}"),
            format!("Boundary=X; charset=utf-8; BOUNDARY=\"{other}\""),
            "boundary=X; boundary=X".to_owned(),
        ] {
            let rejected = send(other, parameters.clone()).await;
            assert_eq!((rejected.status, runs.started()), (StatusCode::BAD_REQUEST, 0), "{parameters}");
            assert!(rejected.text().contains("more than one `boundary`"), "{parameters}");
        }
    }
    assert_eq!(send("v", "boundary=X".to_owned()).await.status, StatusCode::OK, "the key is free");
    assert_eq!(send("w", "boundary=X".to_owned()).await.rejection(), "key_reused");
}

#[tokio::test]
async fn a_multipart_retry_of_a_real_client_replays() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let send = || {
        let form = reqwest::multipart::Form::new().text("amount", "5").text("note", "tea");
        let boundary = form.boundary().to_owned();
        let sent = answer(server.post("/multipart").header("idempotency-key", "k").multipart(form));
        async move { (boundary, sent.await) }
    };
    let (first_boundary, first) = send().await;
    let (second_boundary, second) = send().await;
    assert_ne!(first_boundary, second_boundary);
    assert_eq!(first.text(), "amount=5&note=tea, run 1");
    assert!(second.is_replay());
}

#[tokio::test]
async fn the_original_path_counts_under_nest() {
    let server = serve(&Runs::free()).await;
    assert_eq!(server.post_with_key("/a/nested", "k").await.text(), "run 1");
    assert_eq!(server.post_with_key("/b/nested", "k").await.rejection(), "key_reused");
    assert!(server.post_with_key("/a/nested", "k").await.is_replay());
}

#[tokio::test]
async fn the_default_body_limit_is_honoured_and_claims_nothing() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for key in [None, Some("k")] {
        let request = server.post("/small").body("eleven bytes");
        let request = if let Some(key) = key { request.header("idempotency-key", key) } else { request };
        assert_eq!(answer(request).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert_eq!(runs.started(), 0);
    let within = answer(server.post("/small").header("idempotency-key", "k").body("ten bytes!")).await;
    assert_eq!(within.text(), "10 bytes, run 1");
}

#[tokio::test]
async fn unlimited_body_is_whole_unless_the_fingerprint_needs_it() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    // axum's own limit is 2 MB.
    let large = vec![b'x'; 3_000_000];
    let without_key = answer(server.post("/whole-request").body(large.clone())).await;
    assert_eq!(without_key.text(), "3000000 bytes, run 1");
    let without_fingerprint = answer(server.post("/none").header("idempotency-key", "k").body(large.clone())).await;
    assert_eq!(without_fingerprint.text(), "3000000 bytes, run 2");
    let with_key = answer(server.post("/whole-request").header("idempotency-key", "k").body(large)).await;
    assert_eq!(with_key.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(runs.started(), 2);
}
