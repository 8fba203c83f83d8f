//! Runtimes that are alive but that no thread drives: the tasks of the store cannot run there.

use std::time::Duration;

use idempotent_runtime::store::{AfterCrash, ClaimRequest, Held, RedisStore, Store, StoreError, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::eventually;
use idempotent_tests::redis::RedisServer;
use tokio::runtime::{Builder, Runtime};

/// A runtime that is not driven between two calls, and one that drives the connections.
fn runtimes() -> (Runtime, Runtime) {
    let undriven = Builder::new_current_thread().enable_all().build().expect("a runtime");
    (undriven, Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"))
}

fn request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_mins(2))
        .with_after_crash(AfterCrash::Rerun)
}

async fn claim(store: &RedisStore, key: &str) -> Result<(), StoreError> {
    store.claim(&RecordKey::new("runtimes", None, key), request()).await.map(drop)
}

#[test]
fn eviction_is_seen_although_nothing_drives_the_watch() {
    let (undriven, driven) = runtimes();
    let server = driven.block_on(RedisServer::start(&[]));
    let store = driven.block_on(RedisStore::connect(&server.url())).expect("it evicts nothing");
    undriven.block_on(claim(&store, "first")).expect("it evicts nothing");
    driven.block_on(async {
        let _: String = server.command("CONFIG SET maxmemory-policy allkeys-lru").await;
        let rejected = eventually(async || claim(&store, "second").await, Result::is_err).await;
        let Err(StoreError::NotSent(cause)) = rejected else { panic!("{rejected:?}") };
        assert!(cause.to_string().contains("allkeys-lru"), "{cause}");
    });
    undriven.block_on(claim(&store, "third")).expect_err("it evicts");
    driven.block_on(async {
        let _: String = server.command("CONFIG SET maxmemory-policy noeviction").await;
        eventually(async || claim(&store, "fourth").await, Result::is_ok).await.expect("awaited");
    });
}

/// Waiting requests hear of the end of a claim, as soon as one of them has subscribed again.
#[test]
fn claims_are_heard_although_nothing_drives_the_listener() {
    let (undriven, driven) = runtimes();
    let server = driven.block_on(RedisServer::start(&[]));
    let store = driven.block_on(RedisStore::connect(&server.url())).expect("it evicts nothing");
    let key = RecordKey::new("runtimes", None, "k");
    let hears = async || {
        let held = request();
        store.claim(&key, held).await.expect("it evicts nothing");
        let changed = tokio::time::timeout(Duration::from_millis(50), store.changed(&key));
        let (changed, released) = tokio::join!(changed, store.release(&key, held.token));
        assert_eq!(released.expect("it answers"), Held::Yes);
        changed.is_ok()
    };
    undriven.block_on(eventually(hears, |&heard| heard));
    driven.block_on(eventually(hears, |&heard| heard));
}
