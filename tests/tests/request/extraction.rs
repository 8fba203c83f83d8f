//! Arguments before and after the claim: which of a handler's extractors run for a replay, and what happens to the key
//! if one fails.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::routing::{delete, post};
use axum::{Json, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer, lock};
use serde::{Deserialize, Deserializer};

/// A shop with rows, and with proofs that can be used once.
#[derive(Clone)]
struct Shop {
    rows: Arc<Mutex<HashSet<u32>>>,
    used_proofs: Arc<Mutex<Vec<String>>>,
    validations: Runs,
}

/// A client with the right token.
struct User;

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        parts.headers.get("authorization").map(|_| Self).ok_or(StatusCode::UNAUTHORIZED)
    }
}

/// The row that the path names, loaded from the shop.
struct Row(u32);

impl FromRequestParts<Shop> for Row {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, shop: &Shop) -> Result<Self, StatusCode> {
        let Path(id) = Path::<u32>::from_request_parts(parts, shop).await.map_err(|_| StatusCode::BAD_REQUEST)?;
        let is_there = lock(&shop.rows).contains(&id);
        is_there.then_some(Self(id)).ok_or(StatusCode::NOT_FOUND)
    }
}

/// The answer to a captcha, which can be used once.
struct Proof;

impl FromRequestParts<Shop> for Proof {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, shop: &Shop) -> Result<Self, StatusCode> {
        let proof = parts.headers.get("x-proof").and_then(|proof| proof.to_str().ok()).ok_or(StatusCode::FORBIDDEN)?;
        let mut used = lock(&shop.used_proofs);
        if used.iter().any(|one| one == proof) {
            return Err(StatusCode::FORBIDDEN);
        }
        used.push(proof.to_owned());
        Ok(Self)
    }
}

/// A name that is not taken, according to a query.
struct FreeName(String);

impl FromRequest<Shop> for FreeName {
    type Rejection = StatusCode;

    async fn from_request(request: Request, shop: &Shop) -> Result<Self, StatusCode> {
        let name = String::from_request(request, shop).await.map_err(|_| StatusCode::BAD_REQUEST)?;
        shop.validations.run().await;
        Ok(Self(name))
    }
}

#[idempotent(scope = "extraction-rows", claim_after = _user)]
async fn remove(State(shop): State<Shop>, _user: User, Row(id): Row) -> StatusCode {
    lock(&shop.rows).remove(&id);
    StatusCode::NO_CONTENT
}

#[idempotent(scope = "extraction-rows-none", claim_after = none, cache = [204, 404])]
async fn remove_in_any_case(Row(id): Row, State(shop): State<Shop>) -> StatusCode {
    lock(&shop.rows).remove(&id);
    StatusCode::NO_CONTENT
}

#[idempotent(scope = "extraction-proofs", claim_after = _user)]
async fn sign_up(_user: User, _proof: Proof, name: String) -> (StatusCode, String) {
    (StatusCode::CREATED, name)
}

#[idempotent(scope = "extraction-names", claim_after = _user)]
async fn register(_user: User, FreeName(name): FreeName) -> (StatusCode, String) {
    (StatusCode::CREATED, name)
}

async fn shop(validations: Runs) -> (Shop, Server) {
    let shop = Shop { rows: Arc::new(Mutex::new(HashSet::from([7]))), used_proofs: Arc::default(), validations };
    let app = Router::new()
        .route("/rows/{id}", delete(remove))
        .route("/any-rows/{id}", delete(remove_in_any_case))
        .route("/users", post(sign_up))
        .route("/names", post(register))
        .with_state(shop.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    (shop, Server::start(app).await)
}

async fn delete_row(server: &Server, path: &str, key: &str) -> Answer {
    let request = server.request(Method::DELETE, path).header("idempotency-key", key);
    answer(request.header("authorization", "token")).await
}

#[tokio::test]
async fn repeated_delete_whose_extractor_loads_replays_its_204() {
    let (shop, server) = shop(Runs::free()).await;
    for is_replay in [false, true, true] {
        let answer = delete_row(&server, "/rows/7", "k").await;
        assert_eq!((answer.status, answer.is_replay()), (StatusCode::NO_CONTENT, is_replay));
    }
    let another = delete_row(&server, "/rows/7", "another").await;
    assert_eq!((another.status, another.is_replay()), (StatusCode::NOT_FOUND, false));

    lock(&shop.rows).insert(7);
    let freed = delete_row(&server, "/rows/7", "another").await;
    assert_eq!((freed.status, freed.is_replay()), (StatusCode::NO_CONTENT, false), "404 has freed the key");
}

#[tokio::test]
async fn rejection_after_the_claim_is_recorded_by_its_status() {
    let (shop, server) = shop(Runs::free()).await;
    assert_eq!(delete_row(&server, "/any-rows/8", "k").await.status, StatusCode::NOT_FOUND);
    lock(&shop.rows).insert(8);
    let replay = delete_row(&server, "/any-rows/8", "k").await;
    assert_eq!((replay.status, replay.is_replay()), (StatusCode::NOT_FOUND, true));
    assert_eq!(delete_row(&server, "/any-rows/8", "another").await.status, StatusCode::NO_CONTENT);
    let malformed = delete_row(&server, "/any-rows/x", "malformed").await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST);
    assert!(!delete_row(&server, "/any-rows/x", "malformed").await.is_replay(), "400 is not on the list");
}

#[tokio::test]
async fn single_use_proof_is_consumed_once() {
    let (shop, server) = shop(Runs::free()).await;
    let sign_up = |key: &'static str| {
        let request = server.post("/users").header("authorization", "token").header("x-proof", "captcha");
        answer(request.header("idempotency-key", key).body("ada"))
    };
    for is_replay in [false, true] {
        let answer = sign_up("k").await;
        assert_eq!((answer.status, answer.text(), answer.is_replay()), (StatusCode::CREATED, "ada", is_replay));
    }
    assert_eq!(sign_up("another").await.status, StatusCode::FORBIDDEN, "another request shows a proof that was used");
    assert_eq!(*lock(&shop.used_proofs), ["captcha"]);
}

#[tokio::test]
async fn duplicates_do_not_both_validate() {
    let (shop, server) = shop(Runs::held()).await;
    let register = || {
        let request = server.post("/names").header("authorization", "token").header("idempotency-key", "k");
        answer(request.body("ada"))
    };
    let duplicate = async {
        shop.validations.until_started(1).await;
        let duplicate = register().await;
        shop.validations.let_finish(1);
        duplicate
    };
    let (first, duplicate) = tokio::join!(register(), duplicate);
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "ada"));
    assert_eq!(duplicate.rejection(), "in_flight");
    assert!(register().await.is_replay());
    assert_eq!(shop.validations.started(), 1);
}

#[tokio::test]
async fn authentication_stands_before_every_replay() {
    let (shop, server) = shop(Runs::free()).await;
    assert_eq!(delete_row(&server, "/rows/7", "k").await.status, StatusCode::NO_CONTENT);
    let stranger = answer(server.request(Method::DELETE, "/rows/7").header("idempotency-key", "k")).await;
    assert_eq!((stranger.status, stranger.is_replay()), (StatusCode::UNAUTHORIZED, false));
    let stranger = answer(server.post("/users").header("idempotency-key", "k").header("x-proof", "p")).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    assert!(lock(&shop.used_proofs).is_empty());
}

#[tokio::test]
async fn request_without_a_key_extracts_everything() {
    let (_, server) = shop(Runs::free()).await;
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let request = server.request(Method::DELETE, "/rows/7").header("authorization", "token");
        assert_eq!(answer(request).await.status, status);
    }
}

static PARSED: AtomicUsize = AtomicUsize::new(0);

/// Counts how often it is parsed.
struct Counted(String);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PARSED.fetch_add(1, Ordering::SeqCst);
        String::deserialize(deserializer).map(Self)
    }
}

#[idempotent(scope = "extraction-json", cache = [201, 415])]
async fn json(Json(Counted(text)): Json<Counted>) -> (StatusCode, String) {
    (StatusCode::CREATED, text.len().to_string())
}

#[tokio::test]
async fn replay_of_a_megabyte_parses_nothing() {
    let app = Router::new().route("/", post(json)).layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    let send = |key: &'static str, body: String| {
        let request = server.post("/").header("content-type", "application/json");
        answer(request.header("idempotency-key", key).body(body))
    };
    let megabyte = format!("{:?}", "x".repeat(1024 * 1024));
    for is_replay in [false, true, true] {
        let answer = send("k", megabyte.clone()).await;
        assert_eq!((answer.text(), answer.is_replay()), ("1048576", is_replay));
    }
    assert_eq!(send("k", megabyte.replacen('x', "y", 1)).await.rejection(), "key_reused");
    assert_eq!(PARSED.load(Ordering::SeqCst), 1);

    assert_eq!(send("unfinished", "\"xx".to_owned()).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(send("unfinished", "\"xx\"".to_owned()).await.text(), "2", "400 has freed the key");
    let untyped = || answer(server.post("/").header("idempotency-key", "untyped").body("\"xx\""));
    assert_eq!(untyped().await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(untyped().await.is_replay(), "415 is on the list");
}

/// A body with the signature of its sender. Handlers also use it under the name `Bytes`: the name must not matter.
struct Bytes1(Bytes);

mod own {
    pub(super) use super::Bytes1 as Bytes;
}

impl<S: Send + Sync> FromRequest<S> for Bytes1 {
    type Rejection = StatusCode;

    async fn from_request(request: Request, state: &S) -> Result<Self, StatusCode> {
        if !request.headers().contains_key("x-signature") {
            return Err(StatusCode::UNAUTHORIZED);
        }
        Bytes::from_request(request, state).await.map(Self).map_err(|_| StatusCode::BAD_REQUEST)
    }
}

type Signed = Json<u32>;

#[idempotent(scope = "extraction-own", cache = all)]
async fn own(own::Bytes(body): own::Bytes) -> Bytes {
    body
}

#[idempotent(scope = "extraction-alias", cache = all)]
async fn alias(Json(number): Signed) -> String {
    number.to_string()
}

#[idempotent(scope = "extraction-generic", cache = all)]
async fn generic<T: ToString + for<'de> Deserialize<'de> + Send + 'static>(Json(value): Json<T>) -> String {
    value.to_string()
}

#[idempotent(scope = "extraction-mentioned", key = format!("{number}"), cache = all)]
async fn mentioned(Json(number): Json<u32>) -> String {
    number.to_string()
}

#[idempotent(scope = "extraction-own-late", claim_after = none, cache = all)]
async fn own_late(own::Bytes(body): own::Bytes) -> Bytes {
    body
}

/// The number of entries in a store after a request with a key that the handler's only extractor rejects.
async fn entries_after(path: &str) -> usize {
    let store = MemoryStore::new();
    let app = Router::new()
        .route("/own", post(own))
        .route("/alias", post(alias))
        .route("/generic", post(generic::<u32>))
        .route("/mentioned", post(mentioned))
        .route("/own-late", post(own_late))
        .layer(Registry::new(store.clone()).layer());
    let server = Server::start(app).await;
    let answer = answer(server.post(path).header("idempotency-key", "k").body("forged")).await;
    assert!(answer.status.is_client_error(), "{}", answer.status);
    store.len()
}

#[tokio::test]
async fn own_body_extractor_stays_before_the_claim() {
    assert_eq!(entries_after("/own").await, 0);
    assert_eq!(entries_after("/own-late").await, 1, "unless `claim_after` says otherwise");
}

#[tokio::test]
async fn axums_body_extractor_is_known_by_its_type() {
    assert_eq!(entries_after("/alias").await, 1);
    assert_eq!(entries_after("/generic").await, 1);
}

#[tokio::test]
async fn argument_in_an_expression_stays_before_the_claim() {
    assert_eq!(entries_after("/mentioned").await, 0);
}

#[tokio::test]
async fn signature_stands_before_every_replay() {
    let app = Router::new().route("/", post(own)).layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    let genuine = || answer(server.post("/").header("idempotency-key", "k").header("x-signature", "1").body("event"));
    assert_eq!(genuine().await.text(), "event");
    assert!(genuine().await.is_replay());
    let forged = answer(server.post("/").header("idempotency-key", "k").body("event")).await;
    assert_eq!((forged.status, forged.is_replay()), (StatusCode::UNAUTHORIZED, false));
}
