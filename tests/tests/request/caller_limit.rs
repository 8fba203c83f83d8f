//! A limit on the requests that one caller has in flight, so that a flood by one caller does not affect the others.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, PATIENCE, Runs, Server, answer, eventually};
use reqwest::RequestBuilder;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::ServiceExt;

#[idempotent(scope = "caller-limit-charges", caller = body)]
async fn by_caller(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "caller-limit-refunds", caller = body)]
async fn in_another_scope(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("refund {}", runs.run().await))
}

#[idempotent(scope = "caller-limit-waits", in_flight = wait("30s"))]
async fn waits(State(runs): State<Runs>, _body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("waited {}", runs.run().await))
}

#[idempotent(scope = "caller-limit-by-credentials")]
async fn by_credentials(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

async fn serve(runs: &Runs, store: MemoryStore, most: usize) -> Server {
    let app = Router::new()
        .route("/charges", post(by_caller))
        .route("/refunds", post(in_another_scope))
        .route("/waits", post(waits))
        .route("/by-credentials", post(by_credentials))
        .with_state(runs.clone());
    let registry = Registry::builder(store).max_in_flight_per_caller(most).build();
    Server::start(app.layer(registry.layer())).await
}

fn request(server: &Server, path: &str, caller: &str, key: &str) -> RequestBuilder {
    // If the limit does not work, the handler is held, and the request times out.
    server.post(path).header("idempotency-key", key).body(caller.to_owned()).timeout(PATIENCE)
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
    // The rejected request ran nothing, and the permits are free again.
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
    eventually(
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

#[tokio::test]
async fn caller_at_its_limit_still_gets_replays_and_duplicates() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new(), 1).await;
    runs.let_finish(1);
    assert_eq!(answer(request(&server, "/charges", "alice", "old")).await.text(), "charge 1");
    let running = tokio::spawn(request(&server, "/charges", "alice", "a").send());
    runs.until_started(2).await;
    assert!(answer(request(&server, "/charges", "alice", "old")).await.is_replay());
    assert_eq!(answer(request(&server, "/charges", "alice", "a")).await.rejection(), "in_flight");
    is_rejected(&answer(request(&server, "/charges", "alice", "b")).await);
    runs.let_finish(1);
    running.await.expect("the task ends").expect("the server answers");
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn duplicates_that_wait_are_one_operation() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new(), 2).await;
    let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(answer(request(&server, "/waits", "", "a")))).collect();
    runs.until_started(1).await;
    let another = tokio::spawn(answer(request(&server, "/waits", "", "b")));
    runs.until_started(2).await;
    is_rejected(&answer(request(&server, "/waits", "", "c")).await);
    runs.let_finish(2);
    for answered in waiting {
        assert_eq!(answered.await.expect("the task ends").status, StatusCode::CREATED);
    }
    assert_eq!(another.await.expect("the task ends").status, StatusCode::CREATED);
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn spellings_of_a_scheme_are_one_caller_and_one_request() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new(), 1).await;
    let send = |credentials: &str, key: &str| {
        answer(request(&server, "/by-credentials", "", key).header("authorization", credentials))
    };
    let running = tokio::spawn(send("Bearer T", "a"));
    runs.until_started(1).await;
    for spelling in ["bearer T", "BEARER T", "bEaReR   T"] {
        is_rejected(&send(spelling, "b").await);
        assert_eq!(send(spelling, "a").await.rejection(), "in_flight", "{spelling}");
    }
    runs.let_finish(1);
    assert_eq!(running.await.expect("the task ends").status, StatusCode::CREATED);
    assert!(send("bearer T", "a").await.is_replay());
    assert_eq!(send("bearer t", "a").await.rejection(), "other_credentials");
}

/// Sends the first half of a body. The rest is sent when the sender is dropped.
fn unfinished(request: RequestBuilder) -> (JoinHandle<Answer>, oneshot::Sender<()>) {
    let (sender, receiver) = oneshot::channel();
    let first = stream::iter([Ok::<_, io::Error>(vec![b'x'; 64 * 1024])]);
    let rest = stream::once(async move {
        let _ = receiver.await;
        Ok(Vec::new())
    });
    let body = reqwest::Body::wrap_stream(first.chain(rest));
    (tokio::spawn(answer(request.body(body))), sender)
}

#[tokio::test]
async fn unfinished_bodies_of_a_caller_are_not_read_beyond_its_limit() {
    for path in ["/by-credentials", "/charges"] {
        let runs = Runs::free();
        let rejections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&rejections);
        let registry = Registry::builder(MemoryStore::new()).max_in_flight_per_caller(2);
        let registry = registry.render_rejections(move |rejection, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            rejection.into_response()
        });
        let app = Router::new().route("/by-credentials", post(by_credentials)).route("/charges", post(by_caller));
        let server = Server::start(app.with_state(runs.clone()).layer(registry.build().layer())).await;
        let (answers, senders): (Vec<_>, Vec<_>) = (0..6)
            .map(|key| unfinished(request(&server, path, "", &key.to_string()).header("authorization", "Bearer T")))
            .unzip();
        // Two bodies are still being read, and can be completed.
        eventually(async || rejections.load(Ordering::SeqCst), |&rejected| rejected == 4).await;
        drop(senders);
        let mut rejected = 0;
        for sent in answers {
            let answer = sent.await.expect("the task ends");
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                is_rejected(&answer);
                rejected += 1;
            } else {
                assert_eq!(answer.status, StatusCode::CREATED);
            }
        }
        assert_eq!((rejected, runs.started()), (4, 2), "{path}");
    }
}

#[tokio::test]
async fn unfinished_bodies_of_an_anonymous_client_stop_no_other_one() {
    let runs = Runs::free();
    let server = serve(&runs, MemoryStore::new(), 2).await;
    let (_answers, _senders): (Vec<_>, Vec<_>) =
        (0..6).map(|key| unfinished(request(&server, "/charges", "", &format!("unfinished-{key}")))).unzip();
    let honest = answer(request(&server, "/charges", &"alice".repeat(2_000), "honest")).await;
    assert_eq!(honest.status, StatusCode::CREATED);
}

#[tokio::test]
async fn handlers_without_their_clients_are_bounded() {
    for (most, most_per_scope) in [(3, 100), (100, 3)] {
        let runs = Runs::held();
        let app = Router::new().route("/charges", post(by_caller)).route("/refunds", post(in_another_scope));
        let registry = Registry::builder(MemoryStore::new()).max_running(most).max_running_per_scope(most_per_scope);
        let server = Server::start(app.with_state(runs.clone()).layer(registry.build().layer())).await;
        for number in 0..3 {
            let leaving = tokio::spawn(request(&server, "/charges", "a", &format!("{number}")).send());
            runs.until_started(number + 1).await;
            leaving.abort();
            let _ = leaving.await;
        }
        let rejected = answer(request(&server, "/charges", "a", "more")).await;
        assert_eq!(rejected.rejection(), "too_many_in_flight");
        assert_eq!(
            (rejected.status, &rejected.headers["retry-after"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
        );
        assert_eq!(answer(request(&server, "/charges", "a", "0")).await.rejection(), "in_flight");
        if most > 3 {
            let elsewhere = tokio::spawn(answer(request(&server, "/refunds", "a", "more")));
            runs.until_started(4).await;
            runs.let_finish(1);
            drop(elsewhere);
        }
        runs.let_finish(10);
        eventually(
            async || answer(request(&server, "/charges", "a", "more")).await.status,
            |&status| status == StatusCode::CREATED,
        )
        .await;
        assert!(answer(request(&server, "/charges", "a", "0")).await.is_replay());
    }
}

#[tokio::test]
async fn by_default_10000_handlers_run_and_5000_of_a_scope() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let app = Router::new()
        .route("/charges", post(by_caller))
        .route("/refunds", post(in_another_scope))
        .route("/waits", post(waits))
        .with_state(runs.clone())
        .layer(registry.layer());
    let request = |path: &str, number: usize| {
        let request = Request::post(path).header("idempotency-key", format!("{path}-{number}"));
        app.clone().oneshot(request.body(Body::from("alice")).expect("a request"))
    };
    let mut running = Vec::new();
    for path in ["/charges", "/refunds"] {
        for number in 0..5_000 {
            let mut running_one = Box::pin(request(path, number));
            assert!((&mut running_one).now_or_never().is_none(), "{path} {number} is held");
            running.push(running_one);
        }
        assert_eq!(runs.started(), running.len());
        let rejected = timeout(PATIENCE, request(path, 5_000)).await.expect("it is not held").expect("it answers");
        assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    let of_a_third_scope = timeout(PATIENCE, request("/waits", 0)).await.expect("it is not held");
    assert_eq!(
        (of_a_third_scope.expect("it answers").status(), runs.started()),
        (StatusCode::SERVICE_UNAVAILABLE, 10_000)
    );
    runs.let_finish(10_001);
    drop(running);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert_eq!(request("/waits", 0).await.expect("it answers").status(), StatusCode::CREATED);
}
