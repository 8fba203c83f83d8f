//! Connections to Redis that can no longer be used: to a demoted master, to a replica without its master, through a
//! network that drops all packets, and those that the server has closed. The store replaces them by itself.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::{Stream, stream};
use idempotent_runtime::store::{RedisStore, RedisStoreBuilder};
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Answer, Mode, Proxy, Runs, Server, eventually, lock};
use redis::RedisResult;
use redis::auth::{BasicAuth, StreamingCredentialsProvider};

#[idempotent(scope = "reconnecting-charges")]
async fn create_charge(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Connections {
    Shared,
    OfItsOwn,
}

impl Connections {
    fn to(self, address: &str) -> RedisStoreBuilder {
        let builder = RedisStore::builder(&format!("redis://{address}/"));
        match self {
            Self::Shared => builder,
            // No replica must acknowledge a write, but the store still uses connections of its own.
            Self::OfItsOwn => builder.wait_replicas(0, Duration::from_millis(10)),
        }
    }
}

async fn serve(store: RedisStoreBuilder) -> Server {
    let registry = Registry::new(store.open().await.expect("the store opens"));
    let app = Router::new().route("/charges", post(create_charge)).with_state(Runs::free());
    Server::start(app.layer(registry.layer())).await
}

async fn post_until_reached(server: &Server, key: &str) -> Answer {
    let post = async || server.post_with_key("/charges", key).await;
    eventually(post, |answer| answer.status != StatusCode::SERVICE_UNAVAILABLE).await
}

/// Runs the commands `becomes` on the old server, and then lets the address lead to a new server. The old server keeps
/// its connections. Checks that the store reaches the new server within five seconds.
async fn follows_when(becomes: &str, connections: Connections) {
    let (old, new) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let line = Proxy::to(old.address()).await;
    let server = serve(connections.to(line.address())).await;
    assert_eq!(server.post_with_key("/charges", "k1").await.text(), "charge 1");
    for command in becomes.split(", ") {
        let _: String = old.command(command).await;
    }
    let rejected = server.post_with_key("/charges", "k2").await;
    assert_eq!(rejected.rejection(), "store_unavailable", "{becomes}");
    line.lead_to(new.address());
    let begun = Instant::now();
    assert_eq!(post_until_reached(&server, "k2").await.status, StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_secs(5), "{becomes}: {:?}", begun.elapsed());
    assert!(server.post_with_key("/charges", "k2").await.is_replay());
}

#[tokio::test]
async fn demoted_master_is_left_by_its_connections() {
    for connections in [Connections::Shared, Connections::OfItsOwn] {
        follows_when("REPLICAOF 127.0.0.1 1", connections).await;
    }
}

#[tokio::test]
async fn replica_without_its_master_is_left_by_its_connections() {
    for connections in [Connections::Shared, Connections::OfItsOwn] {
        follows_when("CONFIG SET replica-serve-stale-data no, REPLICAOF 127.0.0.1 1", connections).await;
    }
}

#[tokio::test]
async fn demoted_master_is_left_by_the_applications_connection() {
    let (old, new) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let line = Proxy::to(old.address()).await;
    let client = redis::Client::open(format!("redis://{}/", line.address())).expect("the URL is well-formed");
    let manager = client.get_connection_manager().await.expect("the server answers");
    let server = serve(RedisStore::with_connection(manager)).await;
    let _: String = old.command("REPLICAOF 127.0.0.1 1").await;
    assert_eq!(server.post_with_key("/charges", "k").await.rejection(), "store_unavailable");
    line.lead_to(new.address());
    assert_eq!(post_until_reached(&server, "k").await.text(), "charge 1");
}

/// A provider of a password that can be replaced.
#[derive(Clone, Default)]
struct Passwords(Arc<Mutex<String>>);

impl Passwords {
    fn set(&self, password: &str) {
        password.clone_into(&mut lock(&self.0));
    }
}

impl StreamingCredentialsProvider for Passwords {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        let password = lock(&self.0).clone();
        Box::pin(stream::iter([Ok(BasicAuth::new("app".to_owned(), password))]))
    }
}

#[tokio::test]
async fn rotated_password_is_used_at_the_next_connection() {
    for connections in [Connections::Shared, Connections::OfItsOwn] {
        let (redis, passwords) = (RedisServer::start(&[]).await, Passwords::default());
        passwords.set("first");
        let () = redis.command("ACL SETUSER app on >first ~* &* +@all").await;
        let server = serve(connections.to(&redis.address()).credentials_provider(passwords.clone())).await;
        assert_eq!(server.post_with_key("/charges", "k1").await.text(), "charge 1");
        for (number, password) in [(2, "second"), (3, "third")] {
            let () = redis.command(&format!("ACL SETUSER app resetpass >{password}")).await;
            passwords.set(password);
            let closed: u64 = redis.command("CLIENT KILL TYPE normal").await;
            assert!(closed > 0);
            let text = format!("charge {number}");
            assert_eq!(server.post_with_key("/charges", &format!("k{number}")).await.text(), text);
        }
    }
}

/// The network drops the packets of one connection and lets new connections through, as after a change of addresses.
#[tokio::test]
async fn black_holed_connection_is_replaced_within_seconds() {
    for connections in [Connections::Shared, Connections::OfItsOwn] {
        let redis = RedisServer::start(&[]).await;
        let hole = Proxy::to(redis.address()).await;
        let line = Proxy::to(hole.address()).await;
        let server = serve(connections.to(line.address())).await;
        // So many requests use every connection of the store.
        for number in 0..40 {
            server.post_with_key("/charges", &format!("k{number}")).await;
        }
        hole.set(Mode::Stops);
        line.lead_to(redis.address());
        let begun = Instant::now();
        assert!(post_until_reached(&server, "k0").await.is_replay());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(post_until_reached(&server, "new").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn connection_closed_by_the_server_costs_no_request() {
    for connections in [Connections::Shared, Connections::OfItsOwn] {
        let redis = RedisServer::start(&[]).await;
        let server = serve(connections.to(&redis.address())).await;
        for number in 1..=20 {
            let closed: u64 = redis.command("CLIENT KILL TYPE normal").await;
            assert!(closed > 0);
            let first = server.post_with_key("/charges", &format!("k{number}")).await;
            assert_eq!((first.text(), first.is_replay()), (format!("charge {number}").as_str(), false));
        }
    }
}
