//! Batches of several runtimes, and through a pooler: what ends or blocks one of them holds up no other.

use std::sync::mpsc;
use std::thread;

use futures_util::FutureExt as _;
use idempotent_runtime::store::{AfterCrash, Claim, Held, PostgresStore, Store, StoreError};
use idempotent_tests::pgbouncer::PgBouncer;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{migrated, record};
use idempotent_tests::{PATIENCE, eventually};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::lost::{GATE, Gate, SENT};
use super::{CALLERS, answers, claim_all, count, execute, is_first_attempt, key, requests};

/// The runtime ends while its claims are in statements. Claims of another runtime wait for the same connections, and get them.
/// The ended runtime's claims may have taken effect: with their tokens, they are acquired once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_ended_in_a_batch_holds_up_no_other_runtime() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    migrated(&pool).await;
    execute(&pool, GATE).await;
    let store = PostgresStore::new(database.pool(4).await);
    let gate = Gate::closed(&pool).await;
    let (ended, stays) = (requests(AfterCrash::Reject), requests(AfterCrash::Reject));
    let runtime = Runtime::new().expect("a runtime");
    let lost = {
        let _entered = runtime.enter();
        claim_all(&store, "ended", &ended)
    };
    eventually(async || count(&pool, SENT).await, |&sent| sent == 64).await;
    let claims = claim_all(&store, "stays", &stays);
    tokio::task::yield_now().await;
    runtime.shutdown_background();
    for claim in lost {
        assert!(claim.await.is_err_and(|error| error.is_cancelled()), "its runtime has ended");
    }
    gate.open().await;
    let claims = answers(claims).await;
    assert!(claims.iter().all(is_first_attempt), "{claims:?}");
    let again = answers(claim_all(&store, "ended", &ended)).await;
    assert!(again.iter().all(is_first_attempt), "{again:?}");
    let others = answers(claim_all(&store, "ended", &requests(AfterCrash::Reject))).await;
    assert!(others.iter().all(|claim| matches!(claim, Ok(Claim::InFlight { .. }))), "{others:?}");
}

/// The thread of a runtime is blocked while its claims wait in the queue. The claims of another runtime go out meanwhile, without
/// those of the blocked one, which are answered after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_runtime_holds_up_no_batch_of_another() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    migrated(&pool).await;
    execute(&pool, GATE).await;
    let store = PostgresStore::new(database.pool(16).await);
    let gate = Gate::closed(&pool).await;
    let sent = claim_all(&store, "sent", &requests(AfterCrash::Reject)[..8]);
    eventually(async || count(&pool, SENT).await, |&sent| sent == 8).await;
    let (is_blocked, blocked) = oneshot::channel();
    let (free, until_free) = mpsc::channel::<()>();
    let its_own = store.clone();
    let thread = thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async move {
            let queued = claim_all(&its_own, "queued", &requests(AfterCrash::Reject)[..4]);
            // Each task is polled once, which brings its claim into the queue.
            tokio::task::yield_now().await;
            is_blocked.send(()).expect("the test runs");
            until_free.recv().expect("the test runs");
            answers(queued).await
        })
    });
    blocked.await.expect("the thread runs");
    gate.open().await;
    let sent = answers(sent).await;
    assert!(sent.iter().all(is_first_attempt), "{sent:?}");
    let others = answers(claim_all(&store, "others", &requests(AfterCrash::Reject))).await;
    assert!(others.iter().all(is_first_attempt), "{others:?}");
    let queued = "SELECT count(*) FROM idempotency.records WHERE key LIKE '%queued%'";
    assert_eq!(count(&pool, queued).await, 0, "their caller cannot take the answers");
    free.send(()).expect("the thread waits");
    let queued = thread.join().expect("the thread ends");
    assert!(queued.iter().all(is_first_attempt), "{queued:?}");
}

/// A claim joins the queue on one runtime, and its future continues on another one. It is sent by its own caller.
#[test]
fn claim_that_moves_to_another_runtime_is_sent() {
    let (here, elsewhere) = (Runtime::new().expect("a runtime"), Runtime::new().expect("a runtime"));
    here.block_on(async {
        let database = PostgresServer::shared().await.database().await;
        let pool = database.pool(4).await;
        migrated(&pool).await;
        execute(&pool, GATE).await;
        let store = PostgresStore::new(database.pool(16).await);
        let gate = Gate::closed(&pool).await;
        let sent = claim_all(&store, "sent", &requests(AfterCrash::Reject)[..8]);
        eventually(async || count(&pool, SENT).await, |&sent| sent == 8).await;
        let (moved, request) = (key("moved", 0), requests(AfterCrash::Reject)[0]);
        let mut claim = Box::pin(store.claim(&moved, request));
        {
            let _entered = elsewhere.enter();
            assert!(claim.as_mut().now_or_never().is_none(), "it waits in the queue");
        }
        gate.open().await;
        let claim = tokio::time::timeout(PATIENCE, claim).await.expect("it is sent");
        assert!(is_first_attempt(&claim), "{claim:?}");
        let sent = answers(sent).await;
        assert!(sent.iter().all(is_first_attempt), "{sent:?}");
    });
}

/// Two processes behind PgBouncer in transaction mode, which has fewer connections than they, claim the same keys at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_behind_a_pooler_claim_and_record_once() {
    let server = PostgresServer::shared().await;
    let (database, pooler) = (server.database().await, PgBouncer::in_front_of(server, 2));
    migrated(&database.pool(1).await).await;
    let stores =
        [database.pool_through(&pooler, 4).await, database.pool_through(&pooler, 4).await].map(PostgresStore::new);
    let of_each = [requests(AfterCrash::Reject), requests(AfterCrash::Rerun)];
    let claim = |n: usize| answers(claim_all(&stores[n], "pooled", &of_each[n]));
    let (first, second) = tokio::join!(claim(0), claim(1));
    for number in 0..CALLERS {
        let acquired = [&first, &second].map(|claims| is_first_attempt(&claims[number]));
        assert!(acquired[0] != acquired[1], "{:?} {:?}", first[number], second[number]);
        let holder = usize::from(acquired[1]);
        let other = [&first, &second][1 - holder];
        assert!(matches!(&other[number], Ok(Claim::InFlight { .. })), "{:?}", other[number]);
    }
    let complete = |n: usize| {
        let holder = usize::from(!is_first_attempt(&first[n]));
        let (store, key, request) = (stores[holder].clone(), key("pooled", n), of_each[holder][n]);
        tokio::spawn(async move { store.complete(&key, request.token, record(format!("paid {n}")), request.ttl).await })
    };
    let completed = answers((0..CALLERS).map(complete).collect()).await;
    assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
    let replays = answers(claim_all(&stores[1], "pooled", &requests(AfterCrash::Reject))).await;
    for (number, replay) in replays.iter().enumerate() {
        assert!(is_record(replay, &format!("paid {number}")), "{replay:?}");
    }
}

fn is_record(claim: &Result<Claim, StoreError>, body: &str) -> bool {
    matches!(claim, Ok(Claim::Completed(found)) if found.body == record(body).body)
}
