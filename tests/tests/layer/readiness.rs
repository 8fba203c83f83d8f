//! The readiness of the service inside of a layer: only a request that will call the service waits for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::future::{BoxFuture, join};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{AfterCrash, IdempotencyLayer, IdempotencyService, InFlight, Policy, PolicyBuilder, Registry};
use idempotent_tests::{PATIENCE, Runs};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_layer::Layer as _;

fn layer(policy: PolicyBuilder) -> IdempotencyLayer {
    let policy = policy.build().expect("the policy is valid");
    IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()))
}

fn request(key: Option<&str>) -> Request {
    let request = key.into_iter().fold(Request::post("/"), |request, key| request.header("idempotency-key", key));
    request.body(Body::empty()).expect("a request")
}

async fn text(response: Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    String::from_utf8(body.to_vec()).expect("it is text")
}

/// Handles one request at a time. It reserves a permit when it is ready, as `tower::limit::ConcurrencyLimit` does.
struct OneAtATime {
    runs: Runs,
    places: Arc<Semaphore>,
    waiting: Option<BoxFuture<'static, OwnedSemaphorePermit>>,
    place: Option<OwnedSemaphorePermit>,
}

impl Clone for OneAtATime {
    fn clone(&self) -> Self {
        Self { runs: self.runs.clone(), places: Arc::clone(&self.places), waiting: None, place: None }
    }
}

impl Service<Request> for OneAtATime {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.place.is_none() {
            let places = Arc::clone(&self.places);
            let waiting = self.waiting.get_or_insert_with(|| {
                Box::pin(async move { places.acquire_owned().await.expect("it is never closed") })
            });
            self.place = Some(std::task::ready!(waiting.as_mut().poll(cx)));
            self.waiting = None;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        let place = self.place.take().expect("it is called when it is ready");
        let runs = self.runs.clone();
        Box::pin(async move {
            let run = runs.run().await;
            drop(place);
            Ok(Response::new(Body::from(format!("run {run}"))))
        })
    }
}

fn one_at_a_time(runs: &Runs, policy: PolicyBuilder) -> IdempotencyService<OneAtATime> {
    let service = OneAtATime { runs: runs.clone(), places: Arc::new(Semaphore::new(1)), waiting: None, place: None };
    layer(policy).layer(service)
}

async fn send(service: IdempotencyService<OneAtATime>, key: Option<&'static str>) -> String {
    text(service.oneshot(request(key)).await.expect("the service never fails")).await
}

#[tokio::test]
async fn waiting_duplicate_holds_no_place_of_the_service_beneath() {
    let runs = Runs::held();
    let policy = Policy::builder("readiness-waits").in_flight(InFlight::Wait(Duration::from_mins(1)));
    let service = one_at_a_time(&runs, policy);
    let first = tokio::spawn(send(service.clone(), Some("a")));
    runs.until_started(1).await;
    let duplicates: Vec<_> = (0..3).map(|_| tokio::spawn(send(service.clone(), Some("a")))).collect();
    let others = join(tokio::spawn(send(service.clone(), Some("b"))), tokio::spawn(send(service.clone(), None)));
    runs.let_finish(3);
    let (b, unkeyed) = tokio::time::timeout(PATIENCE, others).await.expect("no duplicate holds the permit");
    assert_ne!(b.expect("it ends"), unkeyed.expect("it ends"));
    assert_eq!(first.await.expect("it ends"), "run 1");
    for duplicate in duplicates {
        assert_eq!(duplicate.await.expect("it ends"), "run 1");
    }
    assert_eq!(runs.started(), 3);
}

/// A replay and a rejection do not call the service, so they are sent even while it is busy.
#[tokio::test]
async fn replay_does_not_wait_for_a_busy_service() {
    let runs = Runs::held();
    let service = one_at_a_time(&runs, Policy::builder("readiness-replays"));
    runs.let_finish(1);
    assert_eq!(send(service.clone(), Some("a")).await, "run 1");
    let running = tokio::spawn(send(service.clone(), Some("b")));
    runs.until_started(2).await;
    let answers = join(send(service.clone(), Some("a")), send(service.clone(), Some("b")));
    let (replay, rejected) = tokio::time::timeout(PATIENCE, answers).await.expect("neither waits for the service");
    assert_eq!(replay, "run 1");
    assert!(rejected.contains("in_flight"), "{rejected}");
    runs.let_finish(1);
    assert_eq!(running.await.expect("it ends"), "run 2");
}

/// A service that fails before it accepts a request, the given number of times.
#[derive(Clone)]
struct Unready(Runs, Arc<AtomicUsize>);

impl Service<Request> for Unready {
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let left = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        Poll::Ready(if left.is_ok() { Err("the service cannot take a request".into()) } else { Ok(()) })
    }

    fn call(&mut self, _: Request) -> Self::Future {
        let runs = self.0.clone();
        Box::pin(async move { Ok(Response::new(Body::from(format!("run {}", runs.run().await)))) })
    }
}

/// Nothing has run, so the outcome is known, also with `after_crash = "reject"`.
#[tokio::test]
async fn service_that_never_became_ready_frees_the_key() {
    let runs = Runs::free();
    let unready = Unready(runs.clone(), Arc::new(AtomicUsize::new(2)));
    let policy = Policy::builder("readiness-fails").after_crash(AfterCrash::Reject);
    let service = ServiceBuilder::new().layer(layer(policy)).service(unready);
    for key in [Some("a"), None] {
        let failed = service.clone().oneshot(request(key)).await;
        assert_eq!(failed.expect_err("it is not ready").to_string(), "the service cannot take a request");
    }
    let retry = service.clone().oneshot(request(Some("a"))).await.expect("it is ready");
    assert_eq!((text(retry).await.as_str(), runs.started()), ("run 1", 1));
}
