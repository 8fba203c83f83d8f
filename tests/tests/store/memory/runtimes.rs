//! Runtimes that are alive but that no thread drives: the task of the store cannot run there.

use std::cell::Cell;
use std::time::{Duration, Instant};

use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, MemoryStore, Owner, Store, StoreError, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::eventually;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

async fn claim(store: &MemoryStore, key: &str, ttl: Duration) -> Result<Claim, StoreError> {
    let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([0; 32]))
        .with_lease(ttl / 2)
        .with_ttl(ttl)
        .with_after_crash(AfterCrash::Rerun)
        .with_owner(Owner::from_u128(1));
    store.claim(&RecordKey::new("memory", Some("alice"), key), request).await
}

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_mins(1);

#[test]
fn share_is_free_again_although_nothing_drives_the_task() {
    let store = MemoryStore::builder().max_bytes_per_caller(250).build();
    let undriven = runtime();
    undriven.block_on(claim(&store, "first", SHORT)).expect("there is room");
    runtime().block_on(async {
        assert!(matches!(claim(&store, "second", LONG).await, Err(StoreError::OverQuota)));
        eventually(async || claim(&store, "second", LONG).await, Result::is_ok).await.expect("awaited");
        // A live entry keeps its share.
        assert!(matches!(claim(&store, "third", LONG).await, Err(StoreError::OverQuota)));
    });
    drop(undriven);
}

/// The former task wakes beside the one that replaced it. Entries are still deleted when they expire.
#[test]
fn former_task_that_wakes_disturbs_no_deletion() {
    let store = MemoryStore::new();
    let (first, second) = (runtime(), runtime());
    first.block_on(claim(&store, "first", SHORT)).expect("there is room");
    let live = Cell::new(0);
    let expire = async |keys: [&str; 2]| {
        for key in keys {
            claim(&store, key, SHORT).await.expect("there is room");
        }
        let left = async || {
            live.set(live.get() + 1);
            claim(&store, &live.get().to_string(), LONG).await.expect("there is room");
            store.len()
        };
        eventually(left, |&left| left == live.get()).await;
    };
    second.block_on(expire(["a", "b"]));
    first.block_on(expire(["c", "d"]));
    second.block_on(expire(["e", "f"]));
    first.block_on(tokio::task::yield_now());
    let tasks = |runtime: &Runtime| runtime.metrics().num_alive_tasks();
    assert_eq!((tasks(&first), tasks(&second)), (0, 1), "the former one ended when it woke");
}

/// Waits until this much time has passed.
fn pass(time: Duration) {
    let began = Instant::now();
    runtime().block_on(eventually(async || began.elapsed(), |elapsed| *elapsed > time));
}

#[test]
fn earlier_expiry_is_told_to_the_task_that_is_driven() {
    let store = MemoryStore::new();
    let (undriven, driven) = (runtime(), runtime());
    undriven.block_on(async {
        claim(&store, "first", 2 * LONG).await.expect("there is room");
        tokio::task::yield_now().await;
    });
    pass(Duration::from_millis(2_500));
    driven.block_on(async {
        claim(&store, "second", LONG).await.expect("there is room");
        tokio::task::yield_now().await;
        claim(&store, "third", SHORT).await.expect("there is room");
        assert_eq!(eventually(async || store.len(), |&left| left == 2).await, 2);
    });
    drop(undriven);
}

#[test]
fn task_whose_runtime_ends_before_its_first_step_is_replaced() {
    let store = MemoryStore::new();
    runtime().block_on(claim(&store, "first", SHORT)).expect("there is room");
    pass(2 * SHORT);
    runtime().block_on(claim(&store, "second", LONG)).expect("there is room");
    runtime().block_on(async {
        claim(&store, "third", LONG).await.expect("there is room");
        assert_eq!(eventually(async || store.len(), |&left| left == 2).await, 2);
    });
}
