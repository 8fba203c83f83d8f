//! A claim that was left to lapse is not renewed any more.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::post;
use futures_util::FutureExt as _;
use idempotent_macros::idempotent;
use tower_service::Service as _;

use crate::concurrency_tests::clock;
use crate::concurrency_tests::explore::schedules;
use crate::concurrency_tests::fixtures::{CountingStore, LEASE, record_key};
use crate::registry::Registry;
use crate::store::contract::{Store as _, StoreAdmin};
use crate::store::entry::EntryState;
use crate::sync::tokio;
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::yield_now;

#[derive(Default)]
struct Moments {
    has_begun: Notify,
    may_panic: Notify,
}

#[idempotent(scope = "charges", fingerprint = none, after_crash = "reject")]
async fn panics(State(moments): State<Arc<Moments>>) {
    moments.has_begun.notify_one();
    moments.may_panic.notified().await;
    // Not `panic!`, which the checker would count as a failure of the test.
    resume_unwind(Box::new("the handler panicked"))
}

// This was once a bug:
//   the renewal of A is due, and on its way to the store
//   A panics under `after_crash = "reject"`: its lease is set to zero, so that a retry learns at once that the outcome
//     is unknown
//   the renewal arrives: the lease is valid again, and a retry learns that A is still running
#[test]
fn claim_left_to_lapse_is_not_renewed_after_its_end() {
    schedules(4_000, async || {
        let (store, moments) = (CountingStore::default(), Arc::<Moments>::default());
        let mut router = Router::new()
            .route("/panics", post(panics))
            .with_state(Arc::clone(&moments))
            .layer(Registry::new(store.clone()).layer());
        let request = Request::post("/panics").header("idempotency-key", "k").body(Body::empty());
        let client = tokio::spawn(AssertUnwindSafe(router.call(request.expect("the parts are valid"))).catch_unwind());
        moments.has_begun.notified().await;
        let passing = tokio::spawn(async { clock::advance(LEASE / 3) });
        moments.may_panic.notify_one();
        client.await.expect("the task is not aborted").expect_err("the panic goes on to the server");
        passing.await.expect("the task is not aborted");
        for _ in 0..10 {
            let entry = store.get(&record_key("k")).await.expect("memory answers").expect("the claim is remembered");
            assert!(matches!(entry.state, EntryState::Claimed { attempt: 1, lease: None, .. }), "{entry:?}");
            yield_now().await;
        }
    });
}
