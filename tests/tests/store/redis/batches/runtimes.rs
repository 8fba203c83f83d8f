//! Batches of several runtimes: what ends or blocks one of them holds up no other.

use std::sync::mpsc;
use std::thread;

use futures_util::FutureExt as _;
use idempotent_runtime::store::{Claim, Held, Store};
use idempotent_tests::PATIENCE;
use idempotent_tests::redis::RedisServer;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::{answers, assert_claimed, body, claim_all, complete_all, connect, is_first_attempt, key, record, requests};

/// The runtime ends while its claims are in batches. Claims of another runtime are answered. The ended runtime's claims may have
/// taken effect: with their tokens, they are acquired once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_ended_in_a_batch_holds_up_no_other_runtime() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    let (ended, stays) = (requests(), requests());
    server.signal("STOP");
    let runtime = Runtime::new().expect("a runtime");
    let lost = {
        let _entered = runtime.enter();
        claim_all(&store, "ended", &ended)
    };
    let claims = claim_all(&store, "stays", &stays);
    tokio::task::yield_now().await;
    runtime.shutdown_background();
    for claim in lost {
        assert!(claim.await.is_err_and(|error| error.is_cancelled()), "its runtime has ended");
    }
    server.signal("CONT");
    let claims = answers(claims).await;
    assert!(claims.iter().all(is_first_attempt), "{claims:?}");
    let again = answers(claim_all(&store, "ended", &ended)).await;
    assert!(again.iter().all(is_first_attempt), "{again:?}");
    let others = answers(claim_all(&store, "ended", &requests())).await;
    assert!(others.iter().all(|claim| matches!(claim, Ok(Claim::InFlight { .. }))), "{others:?}");
}

/// The thread of a runtime is blocked while its claims wait in the queue. The claims of another runtime go out meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_runtime_holds_up_no_batch_of_another() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    server.signal("STOP");
    let sent = claim_all(&store, "sent", &requests()[..8]);
    let (is_blocked, blocked) = oneshot::channel();
    let (free, until_free) = mpsc::channel::<()>();
    let its_own = store.clone();
    let thread = thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async move {
            let queued = claim_all(&its_own, "queued", &requests()[..4]);
            // Each task is polled once, which brings its claim into the queue.
            tokio::task::yield_now().await;
            is_blocked.send(()).expect("the test runs");
            until_free.recv().expect("the test runs");
            answers(queued).await
        })
    });
    blocked.await.expect("the thread runs");
    server.signal("CONT");
    let sent = answers(sent).await;
    assert!(sent.iter().all(is_first_attempt), "{sent:?}");
    let others = answers(claim_all(&store, "others", &requests())).await;
    assert!(others.iter().all(is_first_attempt), "{others:?}");
    free.send(()).expect("the thread waits");
    let queued = thread.join().expect("the thread ends");
    assert!(queued.iter().all(is_first_attempt), "{queued:?}");
}

/// A claim joins the queue on one runtime, and its future continues on another one. It is sent by its own caller.
#[test]
fn claim_that_moves_to_another_runtime_is_sent() {
    let (here, elsewhere) = (Runtime::new().expect("a runtime"), Runtime::new().expect("a runtime"));
    here.block_on(async {
        let server = RedisServer::start(&[]).await;
        let store = connect(&server).await;
        server.signal("STOP");
        let sent = claim_all(&store, "sent", &requests()[..32]);
        let (moved, request) = (key("moved", 0), requests()[0]);
        let mut claim = Box::pin(store.claim(&moved, request));
        {
            let _entered = elsewhere.enter();
            assert!(claim.as_mut().now_or_never().is_none(), "the server stands still");
        }
        server.signal("CONT");
        let claim = tokio::time::timeout(PATIENCE, claim).await.expect("it is sent");
        assert!(is_first_attempt(&claim), "{claim:?}");
        let sent = answers(sent).await;
        assert!(sent.iter().all(is_first_attempt), "{sent:?}");
    });
}

/// A completion joins the queue on a runtime that ends before it has sent the completion. Its future continues on another runtime,
/// and its caller sends it.
#[test]
fn completion_is_sent_after_its_runtime_ended_in_the_queue() {
    let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Nothing drives this runtime, so its tasks never run.
    let ended = Builder::new_current_thread().enable_all().build().expect("a runtime");
    here.block_on(async {
        let server = RedisServer::start(&[]).await;
        let store = connect(&server).await;
        let (held, moved) = (requests(), requests()[0]);
        assert_claimed(&store, "held", &held).await;
        assert!(is_first_attempt(&store.claim(&key("moved", 0), moved).await));
        server.signal("STOP");
        let sent = complete_all(&store, "held", &held[..32], 10);
        // Each task is polled once, so that the next completion has to wait.
        tokio::task::yield_now().await;
        let moved_key = key("moved", 0);
        let mut completion = Box::pin(store.complete(&moved_key, moved.token, record(body(0, 10)), moved.ttl));
        {
            let _entered = ended.enter();
            assert!(completion.as_mut().now_or_never().is_none(), "it waits");
        }
        ended.shutdown_background();
        server.signal("CONT");
        let completed = tokio::time::timeout(PATIENCE, completion).await.expect("it is sent");
        assert!(matches!(completed, Ok(Held::Yes)), "{completed:?}");
        let sent = answers(sent).await;
        assert!(sent.iter().all(|held| matches!(held, Ok(Held::Yes))), "{sent:?}");
    });
}
