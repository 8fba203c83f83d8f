//! Policies that require more of a key than its syntax: `min_key_length` and `key_format`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, KeyFormat, Policy, Registry, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer};

const UUID: &str = "6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c11";

#[derive(serde::Deserialize)]
struct Order {
    token: String,
}

#[idempotent(scope = "rules-long", min_key_length = 16)]
async fn long(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "rules-uuid", key_format = "uuid")]
async fn uuid(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "rules-expression", key = order.token, key_format = "uuid", min_key_length = 36)]
async fn under_an_expression(State(runs): State<Runs>, Json(order): Json<Order>) -> String {
    format!("charge {} for {}", runs.run().await, order.token)
}

#[idempotent(scope = "rules-ignored", invalid_key = "ignore", min_key_length = 16)]
async fn ignored(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

async fn plain(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

fn layer() -> IdempotencyLayer {
    let policy = Policy::builder("rules-layer").min_key_length(36).key_format(KeyFormat::Uuid).build();
    IdempotencyLayer::new(policy.expect("a valid policy"))
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/long", post(long))
        .route("/uuid", post(uuid))
        .route("/expression", post(under_an_expression))
        .route("/ignored", post(ignored))
        .route("/layer", post(plain).layer(layer()))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    Server::start(app).await
}

async fn ordered(server: &Server, token: &str) -> Answer {
    let body = serde_json::json!({ "token": token }).to_string();
    answer(server.post("/expression").header("content-type", "application/json").body(body)).await
}

fn assert_rejected(answer: &Answer, expected: &str) {
    assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, "invalid_key"), "{answer:?}");
    let problem = answer.json();
    let detail = problem["detail"].as_str().expect("a text");
    assert_eq!(detail, expected);
}

#[tokio::test]
async fn key_under_the_minimum_length_is_rejected() {
    let (runs, quoted) = (Runs::free(), format!("\"{}\"", "k".repeat(15)));
    let server = serve(&runs).await;
    for short in ["k".repeat(15).as_str(), &quoted, "\"\\\"23456789012345\""] {
        let detail = "The key has 15 characters, at least 16 are required. Send 16 to 255 visible ASCII characters, bare or as a quoted string.";
        assert_rejected(&server.post_with_key("/long", short).await, detail);
    }
    let detail = "The key is empty. Send 16 to 255 visible ASCII characters, bare or as a quoted string.";
    assert_rejected(&server.post_with_key("/long", "\"\"").await, detail);
    assert_eq!(runs.started(), 0);
    assert_eq!(server.post_with_key("/long", &"k".repeat(16)).await.text(), "charge 1");
    assert!(server.post_with_key("/long", &format!("\"{}\"", "k".repeat(16))).await.is_replay());
}

#[tokio::test]
async fn key_that_is_no_uuid_is_rejected() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let send =
        "Send a UUID with its hyphens, such as 6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c11, bare or as a quoted string.";
    let others = [
        "k",
        "6c5f2a0454f04c3f9d0f2f1b4f0e7c11",
        "{6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c11}",
        "urn:uuid:6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c11",
        "6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c1g",
        "6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c111",
        "6c5f2a0-454f0-4c3f-9d0f-2f1b4f0e7c11",
        "6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c1",
        "6c5f2a04-54f0-4c3f-9d0f_2f1b4f0e7c11",
    ];
    for path in ["/uuid", "/layer"] {
        for other in others {
            assert_rejected(&server.post_with_key(path, other).await, &format!("The key is not a UUID. {send}"));
        }
        let nil = server.post_with_key(path, "00000000-0000-0000-0000-000000000000").await;
        let is_mistake =
            "The key is a text that programs make from a missing value, so all requests of such a program have it.";
        assert_rejected(&nil, &format!("{is_mistake} {send}"));
    }
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn uuid_of_any_version_and_case_is_a_key_of_its_own() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let versions = [UUID, "01890a5d-ac96-774b-bcce-b302099a8057", "c232ab00-9414-11ec-b3c8-9f6bdeced846"];
    for path in ["/uuid", "/layer"] {
        for uuid in versions {
            let (upper, quoted) = (uuid.to_uppercase(), format!("\"{uuid}\""));
            let first = server.post_with_key(path, uuid).await;
            assert_eq!((first.status, first.is_replay()), (StatusCode::OK, false), "{path} {uuid}");
            assert!(server.post_with_key(path, &quoted).await.is_replay(), "the quotes are not the key");
            let other = server.post_with_key(path, &upper).await;
            assert_eq!((other.status, other.is_replay()), (StatusCode::OK, false), "keys are compared byte for byte");
        }
    }
    assert_eq!(runs.started(), 12);
}

#[tokio::test]
async fn key_from_the_arguments_follows_the_rules() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for other in ["k", "order 6c5f2a04 of the customer 54f0-4c", "00000000-0000-0000-0000-000000000000"] {
        assert_eq!(ordered(&server, other).await.rejection(), "invalid_key", "{other}");
    }
    assert_eq!(runs.started(), 0);
    assert_eq!(ordered(&server, UUID).await.status, StatusCode::OK);
    assert!(ordered(&server, UUID).await.is_replay());
}

#[tokio::test]
async fn ignored_key_under_the_minimum_length_counts_as_none() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for run in 1..=2 {
        assert_eq!(server.post_with_key("/ignored", "k").await.text(), format!("charge {run}"));
    }
}

#[test]
fn policy_that_no_key_can_satisfy_is_invalid() {
    let wrong = |length, format| {
        let policy = Policy::builder("rules-wrong").min_key_length(length).key_format(format).build();
        policy.expect_err("no key has it").to_string()
    };
    let at_least = "the policy is invalid: `min_key_length` must be at least 1; write `.min_key_length(16)`";
    assert_eq!(wrong(0, KeyFormat::Any), at_least);
    assert!(wrong(256, KeyFormat::Any).contains("must be at most 255"));
    assert!(wrong(37, KeyFormat::Uuid).contains("must be at most 36 beside `key_format = \"uuid\"`"));
    for (length, format) in [(1, KeyFormat::Any), (255, KeyFormat::Any), (36, KeyFormat::Uuid)] {
        assert!(Policy::builder("rules-right").min_key_length(length).key_format(format).build().is_ok());
    }
}
