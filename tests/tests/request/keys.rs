//! Which header values are valid keys, and which values are the same key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{any, post};
use axum::{Json, Router};
use http::HeaderValue;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::{Runs, Server, answer};

#[idempotent(scope = "echo")]
async fn echo_key(State(runs): State<Runs>, idempotency: Idempotency) -> String {
    runs.run().await;
    idempotency.key().unwrap_or("none").to_owned()
}

#[idempotent(scope = "required", required)]
async fn required(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "required-header", required, header = "x-request-id")]
async fn required_under_another_header() {}

#[idempotent(scope = "lenient", invalid_key = "ignore")]
async fn lenient(idempotency: Idempotency) -> String {
    idempotency.key().unwrap_or("none").to_owned()
}

#[idempotent(scope = "lenient-and-required", invalid_key = "ignore", required)]
async fn lenient_and_required() {}

#[derive(serde::Deserialize)]
struct Order {
    token: Option<String>,
    tea: u32,
}

#[idempotent(scope = "expression", key = order.token, required)]
async fn under_an_expression(State(runs): State<Runs>, Json(order): Json<Order>) -> String {
    format!("{} of tea, charge {}", order.tea, runs.run().await)
}

#[idempotent(scope = "any-method", methods = any)]
async fn any_method(State(runs): State<Runs>) -> String {
    format!("read {}", runs.run().await)
}

#[idempotent(scope = "patch-only", methods = [PATCH])]
async fn patch_only(State(runs): State<Runs>) -> String {
    format!("patch {}", runs.run().await)
}

#[idempotent(scope = "other-methods", methods = [QUERY, "M-SEARCH"])]
async fn other_methods(State(runs): State<Runs>) -> String {
    format!("query {}", runs.run().await)
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/other-methods", any(other_methods))
        .route("/echo", post(echo_key))
        .route("/required", post(required).get(required))
        .route("/required-header", post(required_under_another_header))
        .route("/lenient", post(lenient))
        .route("/lenient-and-required", post(lenient_and_required))
        .route("/expression", post(under_an_expression))
        .route("/any-method", post(any_method).get(any_method))
        .route("/patch-only", post(patch_only).patch(patch_only))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    Server::start(app).await
}

/// Values of the header that are rejected.
const NO_KEYS: &[&[u8]] = &[
    b"",
    b"   ",
    b"\"\"",
    b"\"   \"",
    b"two words",
    b"a\tb",
    b"k\"",
    b"a\"b",
    b"\"open",
    b"\"",
    b"\"a\"b",
    b"\"a\" \"b\"",
    b"\"a\", \"b\"",
    b"\"a\" ;x=1",
    b"\"a\";",
    b"\"a\";A=1",
    br#""bad \escape""#,
    b"\"tab\tinside\"",
    b"a,b",
    b"a;b=1",
    b"a\\b",
    "ключ".as_bytes(),
    "\"ключ\"".as_bytes(),
    b"caf\xe9",
    b"\"caf\xe9\"",
    b"\xff",
];

#[tokio::test]
async fn every_vector_of_the_key_syntax() {
    let longest = "k".repeat(255);
    let quoted_longest = format!("\"{longest}\"");
    let all_visible: String = ('!'..='~').filter(|c| !"\",;\\".contains(*c)).collect();
    let quoted_escapes = format!("\"{}\"", "\\\"".repeat(255));
    let accepted: &[(&str, &str)] = &[
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("k", "k"),
        ("\"k\"", "k"),
        ("  k\t", "k"),
        ("  \"k\"  ", "k"),
        ("\"k\";a=1", "k"),
        ("\"k\";a=\"x;y\";b", "k"),
        ("\"k\"; a", "k"),
        (r#""a\"b""#, "a\"b"),
        (r#""a\\b""#, "a\\b"),
        ("\"two words\"", "two words"),
        ("\"a,b;c\"", "a,b;c"),
        ("order:42/retry?1=2&x[]", "order:42/retry?1=2&x[]"),
        ("'single'", "'single'"),
        (&all_visible, &all_visible),
        (&longest, &longest),
        (&quoted_longest, &longest),
    ];
    let runs = Runs::free();
    let server = serve(&runs).await;
    for (value, key) in accepted {
        let answer = server.post_with_key("/echo", value).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, *key), "{value:?}");
    }
    let before = runs.started();
    for value in NO_KEYS {
        let value = HeaderValue::from_bytes(value).expect("the header's own syntax allows it");
        let answer = answer(server.post("/echo").header("idempotency-key", value.clone())).await;
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, "invalid_key"), "{value:?}");
    }
    for over in ["k".repeat(256), format!("\"{}\"", "k".repeat(256))] {
        assert_eq!(server.post_with_key("/echo", &over).await.rejection(), "invalid_key");
    }
    assert_eq!(runs.started(), before, "a rejected key runs nothing");
    // The limit counts the characters of the key, not of the header.
    assert_eq!(server.post_with_key("/echo", &quoted_escapes).await.text(), "\"".repeat(255));
}

#[tokio::test]
async fn the_quoted_and_the_bare_spelling_name_the_same_key() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    assert!(!server.post_with_key("/echo", "\"k\"").await.is_replay());
    for spelling in ["k", " k ", "\"k\";version=2"] {
        assert!(server.post_with_key("/echo", spelling).await.is_replay(), "{spelling}");
    }
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn keys_differ_by_case() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    server.post_with_key("/echo", "k").await;
    assert_eq!(server.post_with_key("/echo", "K").await.text(), "K");
}

#[tokio::test]
async fn key_that_is_a_bug_of_the_client_is_rejected_as_such() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for mistake in ["undefined", "null", "NaN", "[object Object]"] {
        for key in [mistake.to_owned(), format!("\"{mistake}\"")] {
            let answer = server.post_with_key("/echo", &key).await;
            assert_eq!(answer.rejection(), "invalid_key", "{key}");
            assert!(
                answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("missing value")),
                "{answer:?}"
            );
        }
    }
    assert_eq!(server.post_with_key("/echo", "undefined-1").await.text(), "undefined-1");
}

#[tokio::test]
async fn two_header_lines_are_rejected_even_when_they_agree() {
    let server = serve(&Runs::free()).await;
    let request = server.post("/echo").header("idempotency-key", "k").header("idempotency-key", "k");
    let answer = answer(request).await;
    assert_eq!(answer.rejection(), "invalid_key");
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("more than once")));
}

#[tokio::test]
async fn a_required_key_that_is_missing_is_400_and_names_the_header() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for (path, header) in [("/required", "idempotency-key"), ("/required-header", "x-request-id")] {
        let answer = answer(server.post(path)).await;
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, "missing_key"));
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(header)), "{answer:?}");
    }
    assert_eq!(runs.started(), 0);
    let read = answer(server.request(reqwest::Method::GET, "/required")).await;
    assert_eq!(read.text(), "charge 1", "a method that is not guarded requires nothing");
}

#[tokio::test]
async fn an_ignored_malformed_key_counts_as_none() {
    let server = serve(&Runs::free()).await;
    let twice = server.post("/lenient").header("idempotency-key", "a").header("idempotency-key", "b");
    assert_eq!(answer(twice).await.text(), "none");
    assert_eq!(server.post_with_key("/lenient", "a,b").await.text(), "none");
    assert_eq!(server.post_with_key("/lenient-and-required", "a,b").await.rejection(), "missing_key");
}

#[tokio::test]
async fn a_key_from_the_arguments_replaces_the_header() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let order =
        |body: &'static str| answer(server.post("/expression").header("content-type", "application/json").body(body));
    let first = order(r#"{"tea":1,"token":"t"}"#).await;
    assert_eq!(first.text(), "1 of tea, charge 1");
    assert!(order(r#"{"tea":1,"token":"t"}"#).await.is_replay());
    assert_eq!(order(r#"{"tea":2,"token":"t"}"#).await.rejection(), "key_reused");
    assert_eq!(order(r#"{"tea":1,"token":null}"#).await.rejection(), "missing_key");
    for malformed in [r#"{"tea":1,"token":""}"#, r#"{"tea":1,"token":"  "}"#, "{\"tea\":1,\"token\":\"\u{e9}\"}"] {
        assert_eq!(order(malformed).await.rejection(), "invalid_key", "{malformed}");
    }
    let with_header = server
        .post("/expression")
        .header("idempotency-key", "other")
        .header("content-type", "application/json")
        .body(r#"{"tea":1,"token":"t"}"#);
    assert!(answer(with_header).await.is_replay(), "the header is ignored");
}

#[tokio::test]
async fn the_methods_of_the_policy_are_guarded_and_no_others() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for expected in [false, true] {
        let request = server.request(reqwest::Method::GET, "/any-method").header("idempotency-key", "k");
        assert_eq!(answer(request).await.is_replay(), expected);
    }
    for expected in [false, true] {
        let request = server.request(reqwest::Method::PATCH, "/patch-only").header("idempotency-key", "k");
        assert_eq!(answer(request).await.is_replay(), expected);
    }
    assert!(!server.post_with_key("/patch-only", "k").await.is_replay());
    assert_eq!(runs.started(), 3);
}

#[tokio::test]
async fn method_that_http_does_not_define_is_guarded() {
    let server = serve(&Runs::free()).await;
    for (method, is_guarded) in [("QUERY", true), ("M-SEARCH", true), ("PURGE", false)] {
        for is_retry in [false, true] {
            let named = reqwest::Method::from_bytes(method.as_bytes()).expect("a token");
            let request = server.request(named, "/other-methods").header("idempotency-key", method);
            assert_eq!(answer(request).await.is_replay(), is_guarded && is_retry, "{method}");
        }
    }
}
