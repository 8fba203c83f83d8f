//! A handler that holds a claim runs to its end exactly once, whenever its client leaves, and all requests get its
//! response.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Router, http::StatusCode};
use futures_util::future::{Either, select};
use idempotent_macros::idempotent;
use tower_service::Service as _;

use crate::concurrency_tests::explore::schedules;
use crate::concurrency_tests::fixtures::CountingStore;
use crate::registry::Registry;
use crate::sync::tokio;
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;

#[derive(Default)]
struct Ledger {
    begun: AtomicUsize,
    ended: AtomicUsize,
    has_begun: Notify,
    may_end: Notify,
}

impl Ledger {
    async fn charge(&self) -> usize {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        self.has_begun.notify_one();
        self.may_end.notified().await;
        self.ended.fetch_add(1, Ordering::Relaxed);
        number
    }

    fn runs(&self) -> (usize, usize) {
        (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }
}

// The clock of these tests does not advance: a waiter continues when it is notified, or never.
#[idempotent(scope = "succeeds", fingerprint = none, in_flight = wait("1h"))]
async fn succeeds(State(ledger): State<Arc<Ledger>>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", ledger.charge().await))
}

#[idempotent(scope = "fails", fingerprint = none, in_flight = wait("1h"))]
async fn fails(State(ledger): State<Arc<Ledger>>) -> StatusCode {
    ledger.charge().await;
    StatusCode::INTERNAL_SERVER_ERROR
}

/// A server, the effects of its handlers, and the calls of its store.
struct Service {
    router: Router,
    ledger: Arc<Ledger>,
    store: CountingStore,
    registry: Registry,
}

impl Service {
    fn new() -> Self {
        let (ledger, store) = (Arc::<Ledger>::default(), CountingStore::default());
        let registry = Registry::new(store.clone());
        let router = Router::new()
            .route("/succeeds", post(succeeds))
            .route("/fails", post(fails))
            .with_state(Arc::clone(&ledger))
            .layer(registry.layer());
        Self { router, ledger, store, registry }
    }

    /// Resolves when no handler runs any more, with or without its client.
    async fn drain(&self) {
        // No clock here advances that far by itself, so work that never ends is a deadlock.
        assert_eq!(self.registry.drain(Duration::from_hours(1)).await, 0);
    }

    /// A client that stays until it has its response.
    fn client(&self, path: &'static str) -> JoinHandle<(StatusCode, String)> {
        let mut router = self.router.clone();
        tokio::spawn(async move { read(router.call(request(path)).await.unwrap_or_else(|never| match never {})).await })
    }

    /// A client that leaves when it is told to, unless it has its response by then. It leaves as a server drops a
    /// handler.
    fn client_that_leaves(&self, path: &'static str, leave: &Arc<Notify>) -> JoinHandle<Option<(StatusCode, String)>> {
        let (mut router, leave) = (self.router.clone(), Arc::clone(leave));
        tokio::spawn(async move {
            match select(pin!(router.call(request(path))), pin!(leave.notified())).await {
                Either::Left((response, _)) => Some(read(response.unwrap_or_else(|never| match never {})).await),
                Either::Right(_) => None,
            }
        })
    }
}

fn request(path: &str) -> Request {
    let request = Request::post(path).header("idempotency-key", "k");
    request.body(Body::empty()).expect("the parts are valid")
}

async fn read(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("the body is whole");
    (status, String::from_utf8(body.into()).expect("the handlers answer text"))
}

async fn end<T>(task: JoinHandle<T>) -> T {
    task.await.expect("the task is not aborted")
}

// Four rules must hold. Without each of the first three, the steps below it could happen.
// The rest of a handler is spawned, or its claim would lapse:
//   A claims and runs; its client leaves, and the future is dropped
//   a wake-up of the handler reaches a task that no longer polls it
// A waiter subscribes before it checks, or it would miss the end:
//   B checks: A is running
//   A completes, and notifies no waiter
//   B subscribes, and waits for ever
// The claim ends before the waiters are notified:
//   A notifies; B wakes and checks: A is still running; B sleeps again
//   A completes
// All waiters are notified: B replays what A recorded, and has no reason to wake C.
#[test]
fn handler_without_client_ends_once_and_duplicates_get_it() {
    schedules(3_000, async || {
        let service = Service::new();
        let leave = Arc::<Notify>::default();
        let first = service.client_that_leaves("/succeeds", &leave);
        let duplicates = [(); 2].map(|()| service.client("/succeeds"));
        let ledger = Arc::clone(&service.ledger);
        let answering = tokio::spawn(async move { ledger.may_end.notify_one() });
        leave.notify_one();

        let charged = (StatusCode::CREATED, "charge 1".to_owned());
        for duplicate in duplicates {
            assert_eq!(end(duplicate).await, charged);
        }
        assert!(end(first).await.is_none_or(|response| response == charged));
        end(answering).await;
        service.drain().await;
        assert_eq!(service.ledger.runs(), (1, 1));
        assert_eq!((service.store.acquired(), service.store.ended_claims()), (1, 1));
        assert_eq!(end(service.client("/succeeds")).await, charged);
    });
}

#[test]
fn a_handler_without_a_client_ends_once() {
    schedules(3_000, async || {
        let service = Service::new();
        let leave = Arc::<Notify>::default();
        let first = service.client_that_leaves("/succeeds", &leave);
        service.ledger.has_begun.notified().await;
        let ledger = Arc::clone(&service.ledger);
        let answering = tokio::spawn(async move { ledger.may_end.notify_one() });
        leave.notify_one();
        end(first).await;
        end(answering).await;
        let charged = (StatusCode::CREATED, "charge 1".to_owned());
        assert_eq!(end(service.client("/succeeds")).await, charged);
        service.drain().await;
        assert_eq!((service.ledger.runs(), service.store.ended_claims()), ((1, 1), 1));
    });
}

// A waiter never executes. If it were notified before the release, both waiters would keep sleeping, or wake too early.
#[test]
fn after_a_failure_every_waiter_is_told() {
    schedules(2_000, async || {
        let service = Service::new();
        let ledger = Arc::clone(&service.ledger);
        let failing = tokio::spawn(async move {
            loop {
                ledger.has_begun.notified().await;
                ledger.may_end.notify_one();
            }
        });
        let mut executed = 0;
        for client in [(); 3].map(|()| service.client("/fails")) {
            let (status, _) = end(client).await;
            // A client that arrives after the release waits for no other request, and executes.
            executed += usize::from(status == StatusCode::INTERNAL_SERVER_ERROR);
            assert!(status == StatusCode::INTERNAL_SERVER_ERROR || status == StatusCode::CONFLICT, "{status}");
        }
        failing.abort();
        assert!(executed > 0);
        assert_eq!((service.ledger.runs(), service.store.ended_claims()), ((executed, executed), executed));
    });
}

// This was once a bug:
//   A runs
//   B sends its claim to the store, which must not be forgotten: from here on B survives its client
//   B's client leaves; the rest of B is spawned
//   the store answers that A is running: B waits, without a client
//   A fails and releases the key
//   B claims the key, and runs a request whose client left long ago
#[test]
fn a_waiter_whose_client_left_asks_the_store_nothing_more() {
    schedules(3_000, async || {
        let service = Service::new();
        let leave = Arc::<Notify>::default();
        let running = service.client("/fails");
        service.ledger.has_begun.notified().await;
        let waiter = service.client_that_leaves("/fails", &leave);
        leave.notify_one();
        assert_eq!(end(waiter).await, None);
        let claims = service.store.claims();
        service.ledger.may_end.notify_one();
        end(running).await;
        // The waiter's last check may come late enough to acquire the key: then its run must end too.
        service.ledger.may_end.notify_one();
        service.drain().await;
        assert_eq!(service.store.claims(), claims);
    });
}
