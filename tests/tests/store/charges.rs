//! Handlers for the tests of the stores' promises.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::StoreAdmin;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer};

/// Answers with the number of the run, and repeats the body unless it is `tea`.
#[idempotent(scope = "charges")]
async fn create_charge(State(runs): State<Runs>, body: String) -> ([(&'static str, &'static str); 2], String) {
    let charge = format!("charge {}{}", runs.run().await, body.replace("tea", ""));
    ([("content-type", "text/plain"), ("x-charge", "1")], charge)
}

#[idempotent(scope = "waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

pub(crate) async fn serve(store: impl StoreAdmin, runs: &Runs) -> Server {
    let app = Router::new().route("/charges", post(create_charge)).route("/waits", post(waits));
    Server::start(app.with_state(runs.clone()).layer(Registry::new(store).layer())).await
}

pub(crate) async fn send(server: &Server, key: &str) -> Answer {
    answer(server.post("/charges").header("idempotency-key", key).body("tea")).await
}

/// Sends requests with one key to the servers in turn, while the first request runs. Checks that all of them get its
/// response.
pub(crate) async fn assert_all_waiters_get_one_response(servers: &[Server], runs: &Runs) {
    let waiters = (0..50).map(|number| servers[number % servers.len()].post_with_key("/waits", "k"));
    let (answers, ()) = tokio::join!(join_all(waiters), async {
        runs.until_started(1).await;
        runs.let_finish(50);
    });
    assert!(answers.iter().all(|answer| answer.text() == "charge 1"), "{answers:?}");
    assert_eq!(runs.started(), 1);
}
