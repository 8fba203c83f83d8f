//! The client of a Redis Cluster can send a claim more than once, or a part of it to another server. If the last try
//! fails, an earlier try may still have claimed the key.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{AfterCrash, Held, RedisStore, Resolution, Resolved, Store, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::redis::{RedisServer, cluster_behind};
use idempotent_tests::stores::claim_request;
use idempotent_tests::{Logs, Mode, PATIENCE, Proxy, Runs, Server, eventually};
use redis::cluster::ClusterClientBuilder;
use tokio::time::timeout;

#[idempotent(scope = "cluster-charges", after_crash = "reject", lease = "300ms")]
async fn create_charge(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

async fn store(proxy: &Proxy) -> RedisStore {
    RedisStore::cluster([url(proxy)]).open().await.expect("the store opens")
}

fn url(proxy: &Proxy) -> String {
    format!("redis://{}/", proxy.address())
}

/// Starts a server. Its `store_timeout` leaves time for every try of the client.
async fn serve(store: RedisStore, runs: &Runs) -> Server {
    let registry = Registry::builder(store).store_timeout(PATIENCE).build();
    let app = Router::new().route("/charges", post(create_charge)).with_state(runs.clone());
    let server = Server::start(app.layer(registry.layer())).await;
    // Afterwards, every Redis server has the scripts.
    for number in 1..=10 {
        server.post_with_key("/charges", &format!("warm-{number}")).await;
    }
    assert_eq!(runs.started(), 10);
    server
}

fn name(key: &str) -> String {
    format!("idempotency:{}", RecordKey::new("cluster-charges", None, key).as_str())
}

/// Returns whether the first of two masters has the slot of this name.
async fn is_of_first(masters: &[RedisServer], name: &str) -> bool {
    masters[0].command::<u32>(&format!("CLUSTER KEYSLOT {name}")).await < 8192
}

async fn until_claimed(master: &RedisServer, key: &str) {
    let exists = format!("EXISTS {}", name(key));
    eventually(async || master.command::<u32>(&exists).await, |&exists| exists == 1).await;
}

/// Checks that a retry runs the handler. If the claim stayed, the key would be rejected for ever.
async fn runs_at_its_retry(server: &Server, runs: &Runs, key: &str) {
    let retry = eventually(async || server.post_with_key("/charges", key).await, |answer| answer.status == 200).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("charge 11", false, 11));
}

/// The client sends the claim, and its connection breaks. The client asks the other server, which redirects it to the
/// first one. There the client can no longer connect.
#[tokio::test]
async fn cluster_claim_sent_before_its_server_closes_is_given_back() {
    let mut proxies = [Proxy::to("127.0.0.1:1").await, Proxy::to("127.0.0.1:1").await];
    let (runs, masters) = (Runs::free(), cluster_behind(&[&proxies[0], &proxies[1]]).await);
    let client =
        ClusterClientBuilder::new(proxies.iter().map(url)).retries(2).build().expect("the URLs are well-formed");
    let connection = client.get_async_connection().await.expect("the Cluster answers");
    let store = RedisStore::with_cluster_connection(connection).open().await.expect("the store opens");
    let server = serve(store, &runs).await;
    let of_key = usize::from(!is_of_first(&masters, &name("k")).await);
    proxies[of_key].set(Mode::LosesAnswers);
    let (answer, ()) = tokio::join!(server.post_with_key("/charges", "k"), async {
        until_claimed(&masters[of_key], "k").await;
        proxies[of_key].close().await;
    });
    assert_eq!(answer.rejection(), "store_unavailable");
    proxies[of_key].open().await;
    runs_at_its_retry(&server, &runs, "k").await;
}

/// The client sends the claim, its connection breaks, and the server is full when the client sends the claim again.
#[tokio::test]
async fn cluster_claim_made_before_the_server_is_full_is_given_back() {
    let proxy = Proxy::to("127.0.0.1:1").await;
    let (runs, masters) = (Runs::free(), cluster_behind(&[&proxy]).await);
    let server = serve(store(&proxy).await, &runs).await;
    proxy.set(Mode::LosesAnswers);
    let (answer, ()) = tokio::join!(server.post_with_key("/charges", "k"), async {
        until_claimed(&masters[0], "k").await;
        let _: String = masters[0].command("CONFIG SET maxmemory 1").await;
        proxy.set(Mode::Passes);
    });
    assert_eq!(answer.rejection(), "store_unavailable");
    let _: String = masters[0].command("CONFIG SET maxmemory 0").await;
    runs_at_its_retry(&server, &runs, "k").await;
}

/// One server makes the claim. The other server, which has the set of the claims that never expire, is full.
#[tokio::test]
async fn cluster_claim_whose_index_is_full_is_given_back() {
    let proxies = [Proxy::to("127.0.0.1:1").await, Proxy::to("127.0.0.1:1").await];
    let (runs, masters) = (Runs::free(), cluster_behind(&[&proxies[0], &proxies[1]]).await);
    let server = serve(store(&proxies[0]).await, &runs).await;
    let index_is_of_first = is_of_first(&masters, "idempotency:unknown_outcomes").await;
    let mut number = 0;
    while is_of_first(&masters, &name(&format!("k{number}"))).await == index_is_of_first {
        number += 1;
    }
    let (key, of_index) = (format!("k{number}"), &masters[usize::from(!index_is_of_first)]);
    let _: String = of_index.command("CONFIG SET maxmemory 1").await;
    assert_eq!(server.post_with_key("/charges", &key).await.rejection(), "store_unavailable");
    let _: String = of_index.command("CONFIG SET maxmemory 0").await;
    runs_at_its_retry(&server, &runs, &key).await;
}

/// The client sends the call, its connection breaks, and the client sends the call again. The operator gets the result
/// of the first call.
#[tokio::test]
async fn cluster_call_of_an_operator_sent_twice_tells_the_first() {
    let proxy = Proxy::to("127.0.0.1:1").await;
    let masters = cluster_behind(&[&proxy]).await;
    let store = store(&proxy).await;
    for is_purge in [true, false] {
        // After the call with the key `warm`, the server has the scripts.
        for key in ["warm", "k"] {
            let (key, request) =
                (RecordKey::new("cluster-charges", None, key), claim_request().with_after_crash(AfterCrash::Reject));
            let _ = store.claim(&key, request).await.expect("it claims");
            let _ = store.renew(&key, request.token, Duration::ZERO).await.expect("it lapses");
            let losing = key.key() == "k";
            if losing {
                proxy.set(Mode::LosesAnswers);
            }
            let ending = async {
                if is_purge {
                    return store.purge(&key).await.expect("it purges");
                }
                store.resolve(&key, request.token, Resolution::NotExecuted).await.expect("it resolves") == Resolved::Yes
            };
            let (has_ended, ()) = tokio::join!(ending, async {
                let exists = format!("EXISTS {}", name(&key.key()));
                eventually(async || masters[0].command::<u32>(&exists).await, |&exists| exists == 0).await;
                if losing {
                    proxy.set(Mode::Passes);
                }
            });
            assert!(has_ended, "{key:?}, purge: {is_purge}");
        }
    }
}

#[tokio::test]
async fn cluster_release_sent_twice_tells_the_first() {
    let proxy = Proxy::to("127.0.0.1:1").await;
    let masters = cluster_behind(&[&proxy]).await;
    let store = store(&proxy).await;
    for after_crash in [AfterCrash::Rerun, AfterCrash::Reject] {
        // After the call with the key `warm`, the server has the scripts.
        for key in ["warm", "k"] {
            let (key, request) =
                (RecordKey::new("cluster-charges", None, key), claim_request().with_after_crash(after_crash));
            let _ = store.claim(&key, request).await.expect("it claims");
            let losing = key.key() == "k";
            if losing {
                proxy.set(Mode::LosesAnswers);
            }
            let (held, ()) = tokio::join!(store.release(&key, request.token), async {
                let exists = format!("EXISTS {}", name(&key.key()));
                eventually(async || masters[0].command::<u32>(&exists).await, |&exists| exists == 0).await;
                if losing {
                    proxy.set(Mode::Passes);
                }
            });
            assert_eq!(held.expect("it releases"), Held::Yes, "{key:?}, {after_crash:?}");
            let again = store.release(&key, request.token).await.expect("it answers");
            assert_eq!(again, Held::No, "another call finds nothing");
        }
    }
}

/// A server of a Cluster does not know its own address before it meets another server.
#[tokio::test]
async fn cluster_of_one_server_that_names_no_host_opens() {
    let master = RedisServer::start_cluster_of_one().await;
    let nodes: String = master.command("CLUSTER NODES").await;
    assert!(nodes.contains(" :"), "it names no host: {nodes}");
    let store = RedisStore::cluster([master.url()]).open().await.expect("the store opens");
    let (key, request) = (RecordKey::new("cluster-of-one", None, "k"), claim_request());
    let _ = store.claim(&key, request).await.expect("it claims");
    let page = store.list(None, 10).await.expect("it lists");
    assert_eq!(page.entries.iter().map(|entry| &entry.key).collect::<Vec<_>>(), [&key]);
}

/// The loopback address in a notation that this library takes for the name of another machine.
const ELSEWHERE: &str = "0x7f000001";

#[tokio::test]
async fn cluster_that_names_a_server_elsewhere_later_is_not_followed() {
    let logs = Logs::collect();
    let proxies = [Proxy::to("127.0.0.1:1").await, Proxy::to("127.0.0.1:1").await];
    let masters = cluster_behind(&[&proxies[0], &proxies[1]]).await;
    let store = store(&proxies[0]).await;
    let _: String = masters[1].command(&format!("CONFIG SET cluster-announce-ip {ELSEWHERE}")).await;
    let nodes = async || masters[0].command::<String>("CLUSTER NODES").await;
    eventually(nodes, |nodes| nodes.contains(ELSEWHERE)).await;
    // After a broken connection, the client asks for the addresses of the servers.
    proxies[1].set(Mode::IsCut);
    let mut of_second = (0..).map(|number| RecordKey::new("cluster-charges", None, &format!("k{number}")));
    let key = loop {
        let key = of_second.next().expect("numbers do not end");
        if !is_of_first(&masters, &name(&key.key())).await {
            break key;
        }
    };
    // The client repeats the call for longer than a registry would wait.
    let claim = async || timeout(Duration::from_secs(1), store.claim(&key, claim_request())).await;
    assert!(!matches!(claim().await, Ok(Ok(_))));
    proxies[1].set(Mode::Passes);
    let rejected = async || {
        let claimed = claim().await;
        (claimed, logs.of_level("ERROR").join("\n"))
    };
    let (claimed, told) = eventually(rejected, |(_, told)| told.contains(ELSEWHERE)).await;
    assert!(!matches!(claimed, Ok(Ok(_))), "{claimed:?}");
    assert!(told.contains("`?tls=disable`"), "{told}");
}
