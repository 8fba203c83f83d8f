//! Handlers that end at once: they wake no other thread.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::alone;
use tokio::runtime::Builder;
use tower::ServiceExt;

const REQUESTS: usize = 2_000;

#[idempotent(scope = "quick-handler")]
async fn quick() -> StatusCode {
    StatusCode::CREATED
}

/// Its response is not recorded, so its claims are released.
#[idempotent(scope = "quick-failure")]
async fn quick_failure() -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Returns how often each other thread of this process has slept so far, by its name.
fn sleeps_of_other_threads() -> BTreeMap<String, usize> {
    let own = fs::read_link("/proc/thread-self").expect("this thread");
    let mut sleeps = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("the threads of this process") {
        let path = task.expect("a thread").path();
        // A thread may have ended since the list was read.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        if path.file_name() != own.file_name() {
            let value =
                |name| status.lines().find_map(|line| line.strip_prefix(name)).expect("it has this line").trim();
            let count: usize = value("voluntary_ctxt_switches:").parse().expect("a number");
            *sleeps.entry(value("Name:").to_owned()).or_default() += count;
        }
    }
    sleeps
}

#[test]
fn quick_handler_from_block_on_wakes_no_thread_per_request() {
    if !alone(quick_handler_from_block_on_wakes_no_thread_per_request) {
        return;
    }
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let routes = Router::new().route("/recorded", post(quick)).route("/released", post(quick_failure));
        let app: Router = routes.layer(Registry::new(MemoryStore::new()).layer());
        let send = async |number: usize| {
            let (path, expected) = match number % 2 {
                0 => ("/recorded", StatusCode::CREATED),
                _ => ("/released", StatusCode::INTERNAL_SERVER_ERROR),
            };
            let request = Request::post(path).header("idempotency-key", format!("quick-{number:08}"));
            let request = request.body(Body::empty()).expect("the request is well-formed");
            assert_eq!(app.clone().oneshot(request).await.expect("a router is infallible").status(), expected);
        };
        send(0).await;
        // A name has 15 bytes at most.
        let before = loop {
            let sleeps = sleeps_of_other_threads();
            if sleeps.contains_key("idempotent-leas") {
                break sleeps;
            }
            std::thread::yield_now();
        };
        for number in 1..=REQUESTS {
            send(number).await;
        }
        for (thread, sleeps) in sleeps_of_other_threads() {
            let sleeps = sleeps - before.get(&thread).copied().unwrap_or_default();
            assert!(sleeps < REQUESTS / 100, "{REQUESTS} requests have woken {thread} {sleeps} times");
        }
    });
}
