//! A Redis master dies and its replica is promoted: which claims and records are kept, and which are lost.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{RedisStore, RedisStoreBuilder, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Answer, Mode, PATIENCE, Proxy, Runs, Server, eventually};

#[idempotent(scope = "failover-charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "failover-brief-charges", lease = "900ms")]
async fn create_brief_charge(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

/// A master that the application reaches through a proxy, and a replica that follows the master through another proxy.
struct Pair {
    master: RedisServer,
    replica: RedisServer,
    line: Proxy,
    replication: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let master = RedisServer::start(&[AT_ONCE]).await;
        let (line, replication) = (Proxy::to(master.address()).await, Proxy::to(master.address()).await);
        let replica = follower_of(replication.address()).await;
        Self { master, replica, line, replication }
    }

    fn store(&self) -> RedisStoreBuilder {
        RedisStore::builder(&format!("redis://{}/", self.line.address()))
    }

    /// Waits until the replica has received everything.
    async fn until_in_sync(&self) {
        let replicas = async || self.master.command::<usize>("WAIT 1 1000").await;
        eventually(replicas, |&replicas| replicas == 1).await;
    }

    /// Stops the replication: nothing that is written from now on reaches the replica.
    async fn stop_replication(&self) {
        self.until_in_sync().await;
        self.replication.set(Mode::Stops);
    }

    /// Ends the master for good, and promotes the replica. The application's connections then lead to the promoted
    /// server, as with a DNS name or a virtual address.
    async fn fail_over(self) -> (RedisServer, Proxy) {
        self.line.set(Mode::IsCut);
        self.replication.set(Mode::IsCut);
        drop(self.master);
        let () = self.replica.command("REPLICAOF NO ONE").await;
        self.line.lead_to(self.replica.address());
        self.line.set(Mode::Passes);
        (self.replica, self.line)
    }
}

/// Makes a server start a replication at once. By default it waits five seconds for further replicas.
const AT_ONCE: &str = "--repl-diskless-sync-delay 0";

async fn follower_of(address: &str) -> RedisServer {
    let replica = RedisServer::start(&[AT_ONCE, &format!("--replicaof {}", address.replace(':', " "))]).await;
    let info = async || replica.command::<String>("INFO replication").await;
    eventually(info, |info| info.contains("master_link_status:up")).await;
    replica
}

async fn serve(store: RedisStoreBuilder, runs: &Runs) -> (Server, Registry) {
    let registry = Registry::new(store.open().await.expect("the store opens"));
    let app = Router::new().route("/charges", post(create_charge)).route("/brief-charges", post(create_brief_charge));
    let app = app.with_state(runs.clone());
    (Server::start(app.layer(registry.layer())).await, registry)
}

/// Repeats the request until the store has reconnected, which takes about a second. Until then, requests are rejected.
async fn post_until_reached(server: &Server, key: &str) -> Answer {
    let post = async || server.post_with_key("/charges", key).await;
    eventually(post, |answer| answer.status != StatusCode::SERVICE_UNAVAILABLE).await
}

#[tokio::test]
async fn failover_to_a_replica_in_sync_loses_nothing() {
    let (pair, runs) = (Pair::start().await, Runs::held());
    let (server, registry) = serve(pair.store(), &runs).await;
    runs.let_finish(100);
    for number in 0..100 {
        assert_eq!(server.post_with_key("/charges", &format!("k{number}")).await.status, StatusCode::CREATED);
    }
    let (running, (_replica, _line)) = tokio::join!(server.post_with_key("/charges", "running"), async {
        runs.until_started(101).await;
        pair.until_in_sync().await;
        let promoted = pair.fail_over().await;
        assert_eq!(post_until_reached(&server, "running").await.rejection(), "in_flight", "the claim is there");
        runs.let_finish(1);
        promoted
    });
    assert_eq!((running.status, running.is_replay()), (StatusCode::CREATED, false));
    assert_eq!(registry.drain(PATIENCE).await, 0);
    for number in 0..100 {
        assert!(post_until_reached(&server, &format!("k{number}")).await.is_replay(), "k{number}");
    }
    assert!(post_until_reached(&server, "running").await.is_replay());
    assert_eq!(runs.started(), 101);
}

#[tokio::test]
async fn failover_loses_an_unreplicated_record_and_reruns() {
    let (pair, runs) = (Pair::start().await, Runs::free());
    let (server, _) = serve(pair.store(), &runs).await;
    assert_eq!(server.post_with_key("/charges", "replicated").await.text(), "charge 1");
    pair.until_in_sync().await;
    pair.stop_replication().await;
    assert_eq!(server.post_with_key("/charges", "lost").await.text(), "charge 2");
    assert!(server.post_with_key("/charges", "lost").await.is_replay(), "as long as the master lives");
    let (_replica, _line) = pair.fail_over().await;
    let kept = post_until_reached(&server, "replicated").await;
    assert_eq!((kept.text(), kept.is_replay()), ("charge 1", true));
    let retry = post_until_reached(&server, "lost").await;
    assert_eq!((retry.text(), retry.is_replay()), ("charge 3", false), "the price of asynchronous replication");
}

/// Shorter than the default `store_timeout`.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(300);

#[tokio::test]
async fn wait_replicas_runs_nothing_with_an_unreplicated_claim() {
    let (pair, runs) = (Pair::start().await, Runs::free());
    let (server, _) = serve(pair.store().wait_replicas(1, ACKNOWLEDGED_WITHIN), &runs).await;
    assert_eq!(server.post_with_key("/charges", "replicated").await.text(), "charge 1");
    pair.stop_replication().await;
    for _ in 0..3 {
        assert_eq!(server.post_with_key("/charges", "new").await.rejection(), "store_unavailable");
    }
    assert_eq!(runs.started(), 1, "no success that the promoted replica does not know of");
    // After the failover, this replica acknowledges the writes to the promoted server.
    let _follower = follower_of(&pair.replica.address()).await;
    let (_replica, _line) = pair.fail_over().await;
    let kept = post_until_reached(&server, "replicated").await;
    assert_eq!((kept.text(), kept.is_replay()), ("charge 1", true));
    let new = post_until_reached(&server, "new").await;
    assert_eq!((new.text(), new.is_replay()), ("charge 2", false), "its first execution");
}

#[tokio::test]
async fn wait_replicas_records_again_after_the_failover() {
    let (pair, runs) = (Pair::start().await, Runs::held());
    let (server, registry) = serve(pair.store().wait_replicas(1, ACKNOWLEDGED_WITHIN), &runs).await;
    let _follower = follower_of(&pair.replica.address()).await;
    let (first, ()) = tokio::join!(server.post_with_key("/charges", "k"), async {
        runs.until_started(1).await;
        pair.stop_replication().await;
        runs.let_finish(1);
    });
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "charge 1"), "the handler has run");
    let (replica, _line) = pair.fail_over().await;
    let promoted = RedisStore::connect(&replica.url()).await.expect("the store opens");
    let key = RecordKey::new("failover-charges", None, "k");
    let entry = promoted.get(&key).await.expect("the store answers");
    assert!(entry.is_some(), "the claim was acknowledged, so that no other request runs meanwhile");
    assert_eq!(registry.drain(PATIENCE).await, 0, "the process that ran it records it");
    let retry = post_until_reached(&server, "k").await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("charge 1", true, 1));
}

/// The master loses the claim of a running handler. The renewal claims the key again, and keeps this claim although no
/// replica acknowledges it.
#[tokio::test]
async fn wait_replicas_keeps_the_lost_claim_of_a_handler() {
    let (pair, runs, of_other) = (Pair::start().await, Runs::held(), Runs::free());
    let (server, _) = serve(pair.store().wait_replicas(1, ACKNOWLEDGED_WITHIN), &runs).await;
    let (other, _) = serve(RedisStore::builder(&pair.master.url()), &of_other).await;
    let name = format!("idempotency:{}", RecordKey::new("failover-brief-charges", None, "k").as_str());
    let (first, ()) = tokio::join!(server.post_with_key("/brief-charges", "k"), async {
        runs.until_started(1).await;
        pair.stop_replication().await;
        assert_eq!(pair.master.command::<u32>(&format!("DEL {name}")).await, 1);
        let exists = async || pair.master.command::<u32>(&format!("EXISTS {name}")).await;
        eventually(exists, |&exists| exists == 1).await;
        let claimed_again = Instant::now();
        while claimed_again.elapsed() < 3 * ACKNOWLEDGED_WITHIN {
            assert_eq!(other.post_with_key("/brief-charges", "k").await.rejection(), "in_flight");
        }
        pair.replication.set(Mode::Passes);
        runs.let_finish(1);
    });
    assert_eq!((first.text(), of_other.started()), ("charge 1", 0));
}
