//! A Redis Cluster whose client sends a claim more than once, or a part of it to another server: what the last try says does not
//! tell that nothing was claimed.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::RedisStore;
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::redis::{RedisServer, cluster_behind};
use idempotent_tests::{Mode, PATIENCE, Proxy, Runs, Server, eventually};
use redis::cluster::ClusterClientBuilder;

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

/// Its calls have time for every try of the client.
async fn serve(store: RedisStore, runs: &Runs) -> Server {
    let registry = Registry::builder(store).store_timeout(PATIENCE).build();
    let app = Router::new().route("/charges", post(create_charge)).with_state(runs.clone());
    let server = Server::start(app.layer(registry.layer())).await;
    // The scripts are known afterwards, to each server.
    for number in 1..=10 {
        server.post_with_key("/charges", &format!("warm-{number}")).await;
    }
    assert_eq!(runs.started(), 10);
    server
}

fn name(key: &str) -> String {
    format!("idempotency:{}", RecordKey::new("cluster-charges", None, key).as_str())
}

/// Of two masters.
async fn is_of_first(masters: &[RedisServer], name: &str) -> bool {
    masters[0].command::<u32>(&format!("CLUSTER KEYSLOT {name}")).await < 8192
}

async fn until_claimed(master: &RedisServer, key: &str) {
    let exists = format!("EXISTS {}", name(key));
    eventually(async || master.command::<u32>(&exists).await, |&exists| exists == 1).await;
}

/// A claim that stayed would reject the key for ever.
async fn runs_at_its_retry(server: &Server, runs: &Runs, key: &str) {
    let retry = eventually(async || server.post_with_key("/charges", key).await, |answer| answer.status == 200).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("charge 11", false, 11));
}

/// The client sends the claim and its connection breaks. It asks the other server, which sends it back, and is refused.
#[tokio::test]
async fn cluster_claim_sent_before_a_refusal_is_given_back() {
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

/// The client sends the claim, its connection breaks, and the server is full when it comes again.
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

/// The claim is made by one server, and another one, which has the set of the claims that never expire, is full.
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
