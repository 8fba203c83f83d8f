//! A limit on what one caller has under way, so that its flood leaves the others alone.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer};
use reqwest::RequestBuilder;

#[idempotent(scope = "caller-limit-charges", caller = body)]
async fn by_caller(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "caller-limit-refunds", caller = body)]
async fn in_another_scope(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("refund {}", runs.run().await))
}

#[idempotent(scope = "caller-limit-by-credentials")]
async fn by_credentials(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

async fn serve(runs: &Runs, store: MemoryStore, most: usize) -> Server {
    let app = Router::new()
        .route("/charges", post(by_caller))
        .route("/refunds", post(in_another_scope))
        .route("/by-credentials", post(by_credentials))
        .with_state(runs.clone());
    let registry = Registry::builder(store).max_in_flight_per_caller(most).build();
    Server::start(app.layer(registry.layer())).await
}

fn request(server: &Server, path: &str, caller: &str, key: &str) -> RequestBuilder {
    server.post(path).header("idempotency-key", key).body(caller.to_owned())
}

fn is_rejected(answer: &Answer) {
    assert_eq!(answer.rejection(), "too_many_in_flight");
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test]
async fn callers_each_have_their_number_of_requests_under_way() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new(), 2).await;
    let first = ["a", "b"].map(|key| tokio::spawn(request(&server, "/charges", "alice", key).send()));
    runs.until_started(2).await;
    is_rejected(&answer(request(&server, "/charges", "alice", "c")).await);
    let others = [request(&server, "/charges", "bob", "c"), request(&server, "/refunds", "alice", "c")];
    let others = others.map(|request| tokio::spawn(request.send()));
    runs.until_started(4).await;
    runs.let_finish(5);
    for request in first.into_iter().chain(others) {
        let response = request.await.expect("the task ends").expect("the server answers");
        assert_eq!(response.status(), StatusCode::CREATED);
    }
    // The rejected request ran nothing, and the places are free again.
    assert_eq!(answer(request(&server, "/charges", "alice", "c")).await.text(), "charge 5");
    assert!(answer(request(&server, "/charges", "alice", "c")).await.is_replay());
}

#[tokio::test]
async fn credentials_count_where_the_handler_names_no_caller() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new(), 1).await;
    let send = |credentials: Option<&str>, key: &str| {
        let request = request(&server, "/by-credentials", "", key);
        match credentials {
            Some(credentials) => request.header("authorization", credentials),
            None => request,
        }
    };
    let running = [send(Some("alice"), "a"), send(Some("bob"), "b"), send(None, "c")];
    let running = running.map(|request| tokio::spawn(request.send()));
    runs.until_started(3).await;
    is_rejected(&answer(send(Some("alice"), "d")).await);
    is_rejected(&answer(send(None, "e")).await);
    runs.let_finish(3);
    for request in running {
        request.await.expect("the task ends").expect("the server answers");
    }
}

#[tokio::test]
async fn client_that_hangs_up_keeps_its_place_until_the_end() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new(), 1).await;
    let leaving = tokio::spawn(request(&server, "/charges", "alice", "a").send());
    runs.until_started(1).await;
    leaving.abort();
    let _ = leaving.await;
    is_rejected(&answer(request(&server, "/charges", "alice", "b")).await);
    runs.let_finish(2);
    idempotent_tests::eventually(
        async || answer(request(&server, "/charges", "alice", "b")).await.status,
        |&status| status == StatusCode::CREATED,
    )
    .await;
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn flood_of_fresh_keys_neither_evicts_nor_stops_others() {
    let runs = Runs::held();
    // Room for some hundred records.
    let server = serve(&runs, MemoryStore::builder().max_bytes(100_000).build(), 8).await;
    runs.let_finish(1);
    assert_eq!(answer(request(&server, "/charges", "bob", "k")).await.text(), "charge 1");

    let flood = |number: usize| request(&server, "/charges", "mallory", &format!("flood-{number}"));
    let flooding: Vec<_> = (0..100).map(|number| tokio::spawn(answer(flood(number)))).collect();
    runs.until_started(1 + 8).await;
    let bob = tokio::spawn(answer(request(&server, "/charges", "bob", "another")));
    runs.until_started(1 + 8 + 1).await;
    runs.let_finish(8 + 1);
    assert_eq!(bob.await.expect("the task ends").status, StatusCode::CREATED);
    let flooded = join_all(flooding).await.into_iter().map(|flooded| flooded.expect("the task ends"));
    let (charged, rejected): (Vec<_>, Vec<_>) = flooded.partition(|answer| answer.status == StatusCode::CREATED);
    assert_eq!((charged.len(), rejected.len()), (8, 92));
    rejected.iter().for_each(is_rejected);

    runs.let_finish(10_000);
    let mut number = 100;
    while answer(flood(number)).await.status == StatusCode::CREATED {
        number += 1;
    }
    assert_eq!(answer(flood(number)).await.rejection(), "store_unavailable", "a full store evicts nothing");
    for key in ["k", "another"] {
        assert!(answer(request(&server, "/charges", "bob", key)).await.is_replay(), "{key}");
    }
}
