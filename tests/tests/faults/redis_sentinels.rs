//! A Sentinel promotes a replica under load: the store asks a Sentinel for the master at every new connection, and no
//! key is executed twice.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{RedisOpenError, RedisStore};
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sentinel::{Sentinel, replica_of};
use idempotent_tests::{Executions, Server, eventually, post_until_answered};
use tokio::runtime::{Builder, Runtime};

#[idempotent(scope = "sentinel-charges")]
async fn create_charge(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

/// Settings that start a replication at once, and keep a busy disk from delaying a server.
const SETTINGS: [&str; 2] = ["--repl-diskless-sync-delay 0", "--appendonly no"];

struct Shop {
    /// The master, until the test ends it.
    master: Option<RedisServer>,
    replica: RedisServer,
    /// The Sentinels, in the order in which the store asks them.
    sentinels: Vec<Sentinel>,
    server: Server,
    executions: Executions,
}

impl Shop {
    async fn open() -> Self {
        Self::open_with(1, None).await
    }

    async fn open_with(sentinels: usize, wait: Option<Duration>) -> Self {
        Self::open_by(sentinels, async |url| {
            let store = RedisStore::builder(url);
            let store = wait.into_iter().fold(store, |store, timeout| store.wait_replicas(1, timeout));
            store.open().await
        })
        .await
    }

    /// Opens the store on a runtime that nothing drives afterwards.
    async fn open_on(undriven: &Arc<Runtime>) -> Self {
        Self::open_by(1, async |url| {
            let (undriven, url) = (Arc::clone(undriven), url.to_owned());
            let opening = move || undriven.block_on(RedisStore::connect(&url));
            tokio::task::spawn_blocking(opening).await.expect("it opens the store")
        })
        .await
    }

    async fn open_by(sentinels: usize, open: impl AsyncFnOnce(&str) -> Result<RedisStore, RedisOpenError>) -> Self {
        let master = RedisServer::start(&SETTINGS).await;
        let replica = replica_of(&master, &SETTINGS).await;
        // A single Sentinel has only its own vote.
        let quorum = if sentinels == 1 { 1 } else { 2 };
        let sentinels: Vec<_> = (0..sentinels).map(|_| Sentinel::of_quorum(quorum, &master.address(), &[])).collect();
        for sentinel in &sentinels {
            sentinel.until_it_knows_a_replica().await;
            sentinel.until_it_knows_others(sentinels.len() - 1).await;
        }
        let addresses: Vec<_> = sentinels.iter().map(Sentinel::address).collect();
        // Nothing listens at the first address, as if that Sentinel were gone.
        let url = format!("redis+sentinel://127.0.0.1:1,{}/shop/0", addresses.join(","));
        let registry = Registry::new(open(&url).await.expect("the store opens"));
        let executions = Executions::default();
        let app = Router::new().route("/charges", post(create_charge)).with_state(executions.clone());
        let server = Server::start(app.layer(registry.layer())).await;
        Self { master: Some(master), replica, sentinels, server, executions }
    }

    fn master(&self) -> &RedisServer {
        self.master.as_ref().expect("it is there")
    }

    fn sentinel(&self) -> &Sentinel {
        &self.sentinels[0]
    }

    /// Waits until the replica has received everything.
    async fn until_in_sync(&self) {
        let offset = async |server: &RedisServer| {
            let info = server.command::<String>("INFO replication").await;
            info.lines().find_map(|line| Some(line.strip_prefix("master_repl_offset:")?.to_owned()))
        };
        let offsets = async || (offset(self.master()).await, offset(&self.replica).await);
        eventually(offsets, |(master, replica)| master.is_some() && master == replica).await;
    }

    /// Sends requests of eight clients, which repeat the rejected ones, while `fault` makes the master fail.
    async fn charge_while(&self, fault: impl Future<Output = ()>) {
        let charges = post_until_answered(&self.server, "/charges", "during-", 300);
        let ((answers, rejected), ()) = tokio::join!(charges, fault);
        assert_eq!(answers.len(), 600);
        assert!(rejected > 0, "the fault met requests");
        let role = self.replica.command::<String>("INFO replication").await;
        assert!(role.contains("role:master"), "{role}");
    }

    async fn replays(&self, prefix: &str, keys: usize) {
        let (answers, _) = post_until_answered(&self.server, "/charges", prefix, keys).await;
        for answer in answers {
            assert!(answer.is_replay() && answer.text() == "execution 1", "{prefix}: {answer:?}");
        }
    }

    /// Checks that the 20 keys from before the failover, and the 300 keys from during it, were each executed once.
    async fn assert_all_charged_once(&self) {
        self.replays("before-", 20).await;
        self.replays("during-", 300).await;
        assert_eq!(self.executions.repeated(), Vec::new());
        assert_eq!(self.executions.total(), 320);
    }
}

#[tokio::test]
async fn paused_master_that_was_replaced_takes_no_claims() {
    let shop = Shop::open().await;
    let (answers, _) = post_until_answered(&shop.server, "/charges", "before-", 20).await;
    assert_eq!(answers.len(), 40);
    shop.until_in_sync().await;
    shop.charge_while(async {
        shop.executions.ten_more().await;
        shop.master().signal("STOP");
        shop.sentinel().fail_over().await;
    })
    .await;
    // The former master believes for some more seconds that it is the master.
    shop.master().signal("CONT");
    shop.replays("before-", 20).await;
    shop.replays("during-", 300).await;
    let (answers, rejected) = post_until_answered(&shop.server, "/charges", "after-", 20).await;
    assert!(answers.iter().all(|answer| answer.text() == "execution 1"));
    assert_eq!(rejected, 0);
    assert_eq!(shop.executions.repeated(), Vec::new());
    assert_eq!(shop.executions.total(), 340);
}

#[tokio::test]
async fn master_that_is_gone_is_replaced_by_its_replica() {
    let mut shop = Shop::open().await;
    let (answers, _) = post_until_answered(&shop.server, "/charges", "before-", 20).await;
    assert_eq!(answers.len(), 40);
    shop.until_in_sync().await;
    let master = shop.master.take();
    shop.charge_while(async {
        shop.executions.ten_more().await;
        drop(master);
        shop.sentinel().lose_patience().await;
    })
    .await;
    shop.assert_all_charged_once().await;
}

#[tokio::test]
async fn idle_store_leaves_a_master_that_was_replaced() {
    assert_leaves_a_former_master(&Shop::open().await).await;
}

/// The store subscribes to the Sentinel on the runtime on which it was opened, and hears nothing there. A claim at the former
/// master would be lost.
#[tokio::test]
async fn store_of_an_undriven_runtime_leaves_a_former_master() {
    let undriven = Arc::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
    assert_leaves_a_former_master(&Shop::open_on(&undriven).await).await;
    Arc::into_inner(undriven).expect("the store is open").shutdown_background();
}

async fn assert_leaves_a_former_master(shop: &Shop) {
    let (answers, _) = post_until_answered(&shop.server, "/charges", "before-", 1).await;
    assert_eq!(answers.len(), 2);
    shop.sentinel().until_it_is_heard().await;
    shop.until_in_sync().await;
    shop.master().signal("STOP");
    shop.sentinel().fail_over().await;
    shop.sentinel().until_it_names(&shop.replica).await;
    shop.sentinel().until_it_is_heard().await;
    // No call was sent meanwhile, so none has failed. The former master believes for some more seconds that it is the
    // master.
    shop.master().signal("CONT");
    let (answers, rejected) = post_until_answered(&shop.server, "/charges", "after-", 1).await;
    assert_eq!((answers.len(), rejected), (2, 0));
    assert_eq!(shop.replica.command::<u64>("DBSIZE").await, 2, "the new master has the record");
    assert!(shop.executions.repeated().is_empty());
}

/// The votes of the other two Sentinels are enough.
#[tokio::test]
async fn master_is_replaced_when_one_of_three_sentinels_is_gone() {
    let mut shop = Shop::open_with(3, None).await;
    let (answers, _) = post_until_answered(&shop.server, "/charges", "before-", 20).await;
    assert_eq!(answers.len(), 40);
    shop.until_in_sync().await;
    let (master, first) = (shop.master.take(), shop.sentinels.remove(0));
    shop.charge_while(async {
        shop.executions.ten_more().await;
        drop((first, master));
        for sentinel in &shop.sentinels {
            sentinel.lose_patience().await;
        }
    })
    .await;
    shop.assert_all_charged_once().await;
}

#[tokio::test]
async fn wait_replicas_waits_for_those_of_the_master_of_the_moment() {
    let shop = Shop::open_with(1, Some(Duration::from_millis(300))).await;
    let charge = async |key: &str| shop.server.post_with_key("/charges", key).await;
    // A busy replica may acknowledge a write too late.
    eventually(async || charge("k1").await, |answer| answer.status == 200).await;
    shop.replica.signal("STOP");
    assert_eq!(charge("k2").await.rejection(), "store_unavailable");
    assert_eq!(shop.executions.total(), 1);
    shop.replica.signal("CONT");
    eventually(async || charge("k2").await, |answer| answer.status == 200).await;
    // After the failover, the former master is the replica.
    shop.sentinel().fail_over().await;
    shop.sentinel().until_it_names(&shop.replica).await;
    eventually(async || charge("k3").await, |answer| answer.status == 200).await;
    let role = shop.replica.command::<String>("INFO replication").await;
    assert!(role.contains("role:master") && role.contains("connected_slaves:1"), "{role}");
    assert!(charge("k1").await.is_replay());
    shop.master().signal("STOP");
    assert_eq!(charge("k4").await.rejection(), "store_unavailable");
    assert_eq!((shop.executions.total(), shop.executions.repeated()), (3, Vec::new()));
}
