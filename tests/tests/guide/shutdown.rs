//! SIGTERM for a server in a separate process, while a handler runs whose client has disconnected.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::sqlite::{SecondProcess, SqliteFile, second_process, tell, wait_for_go};
use idempotent_tests::{Answer, Server, answer, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// Runs until the test tells it to continue.
#[idempotent(scope = "slow-orders", shared_scope, cache = [201], lease = "2s")]
async fn create_order(idempotency: Idempotency) -> (StatusCode, String) {
    tell("it runs");
    tokio::task::spawn_blocking(wait_for_go).await.expect("it waits");
    (StatusCode::CREATED, format!("by the old process, attempt {}", idempotency.attempt()))
}

async fn registry(path: &Path) -> Registry {
    Registry::new(SqliteStore::open(path).await.expect("the store opens"))
}

/// Serves and drains as in the page, and reports the result to the test.
async fn serve(path: &Path, limit: Duration) {
    let registry = registry(path).await;
    let app: Router = Router::new().route("/orders", post(create_order)).layer(registry.layer());
    let mut terminate = signal(SignalKind::terminate()).expect("the signal can be heard");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    tell(&format!("{} {}", listener.local_addr().expect("an address"), std::process::id()));
    let stop = async move { _ = terminate.recv().await };
    axum::serve(listener, app).with_graceful_shutdown(stop).await.expect("the server runs");
    tell("the server has stopped");
    let left = registry.drain(limit).await;
    tell(&format!("left: {left}"));
    // A handler that is still running blocks a thread until the test tells it to continue, and the runtime would wait
    // for that thread.
    std::process::exit(0);
}

/// The new version in a rolling restart. It runs in the process of the test.
async fn start_anew(file: &SqliteFile) -> Server {
    #[idempotent(scope = "slow-orders", shared_scope, cache = [201], lease = "2s")]
    async fn create_order_anew(idempotency: Idempotency) -> (StatusCode, String) {
        (StatusCode::CREATED, format!("by the new process, attempt {}", idempotency.attempt()))
    }
    Server::start(Router::new().route("/orders", post(create_order_anew)).layer(registry(&file.path()).await.layer()))
        .await
}

async fn retry(server: &Server, old: &str) -> Answer {
    // The fingerprint includes the authority, so the retry names the same one.
    answer(server.post("/orders").header("host", old).header("idempotency-key", "k")).await
}

/// Starts a request, disconnects its client and sends SIGTERM. Returns the address of the server.
async fn stopped_with_a_handler(process: &mut SecondProcess) -> String {
    let told = process.told();
    let (address, pid) = told.split_once(' ').expect("an address and a process");
    let mut client = TcpStream::connect(address).await.expect("it listens");
    let request =
        format!("POST /orders HTTP/1.1\r\nhost: {address}\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut client, request.as_bytes()).await.expect("it reads");
    assert_eq!(process.told(), "it runs");
    drop(client);
    let pid = Pid::from_raw(pid.parse().expect("a number")).expect("a process");
    kill_process(pid, Signal::TERM).expect("it is there");
    assert_eq!(process.told(), "the server has stopped");
    let refused = async || TcpStream::connect(address).await.is_err();
    assert!(eventually(refused, |&refused| refused).await);
    address.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_after_sigterm_waits_for_a_handler_without_client() {
    if let Some(path) = second_process() {
        return serve(&path, Duration::from_secs(20)).await;
    }
    let file = SqliteFile::new();
    let mut old = SecondProcess::start(drain_after_sigterm_waits_for_a_handler_without_client, &file.path());
    let address = stopped_with_a_handler(&mut old).await;
    let new = start_anew(&file).await;
    let meanwhile = retry(&new, &address).await;
    assert_eq!(meanwhile.rejection(), "in_flight");
    assert!(meanwhile.headers.contains_key("retry-after"));
    old.go();
    assert_eq!(old.told(), "left: 0");
    let after = retry(&new, &address).await;
    assert_eq!((after.text(), after.is_replay()), ("by the old process, attempt 1", true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_limit_that_is_over_leaves_the_retry_to_the_lease() {
    if let Some(path) = second_process() {
        return serve(&path, Duration::ZERO).await;
    }
    let file = SqliteFile::new();
    let new = start_anew(&file).await;
    let mut old = SecondProcess::start(drain_limit_that_is_over_leaves_the_retry_to_the_lease, &file.path());
    let address = stopped_with_a_handler(&mut old).await;
    assert_eq!(old.told(), "left: 1");
    assert_eq!(retry(&new, &address).await.rejection(), "in_flight");
    let after = eventually(async || retry(&new, &address).await, |answer| answer.status.is_success()).await;
    assert_eq!((after.text(), after.is_replay()), ("by the new process, attempt 2", false));
}
