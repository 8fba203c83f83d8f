//! A claim is sent a second time, because its connection broke, while the first one is still on its way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::RedisStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Runs, Server, lock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A proxy for Redis that holds one script back and closes the connection of its client.
#[derive(Clone, Default)]
struct LateLine(Arc<Mutex<Late>>);

#[derive(Default)]
struct Late {
    keeps_next: bool,
    kept: Option<(Vec<u8>, TcpStream)>,
}

impl LateLine {
    /// Starts a proxy for the server at `target`. Returns the proxy and its address.
    async fn to(target: String) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let line = Self::default();
        let accepting = line.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.expect("the server listens");
                tokio::spawn(accepting.clone().carry(client, server));
            }
        });
        (line, address)
    }

    async fn carry(self, mut client: TcpStream, mut server: TcpStream) {
        let (mut request, mut answer) = (vec![0; 65536], vec![0; 65536]);
        loop {
            tokio::select! {
                read = client.read(&mut request) => {
                    let Ok(length @ 1..) = read else { return };
                    if self.keeps(&request[..length]) {
                        lock(&self.0).kept = Some((request[..length].to_vec(), server));
                        return;
                    }
                    if server.write_all(&request[..length]).await.is_err() { return }
                }
                read = server.read(&mut answer) => {
                    let Ok(length @ 1..) = read else { return };
                    if client.write_all(&answer[..length]).await.is_err() { return }
                }
            }
        }
    }

    fn keeps(&self, request: &[u8]) -> bool {
        let is_script = request.windows(7).any(|bytes| bytes == b"EVALSHA");
        is_script && std::mem::take(&mut lock(&self.0).keeps_next)
    }

    fn keep_next(&self) {
        lock(&self.0).keeps_next = true;
    }

    /// Delivers the script that was held back, and waits until the server has answered it.
    async fn deliver(&self) {
        let kept = lock(&self.0).kept.take();
        let (request, mut server) = kept.expect("a script was kept");
        server.write_all(&request).await.expect("the connection to the server is there");
        assert_ne!(server.read(&mut [0; 1024]).await.expect("the server answers"), 0);
    }
}

/// Answers 402 in its first run. This status is not recorded.
#[idempotent(scope = "late-claims", after_crash = "reject", lease = "300ms")]
async fn pays_later(State(runs): State<Runs>) -> StatusCode {
    if runs.run().await == 1 { StatusCode::PAYMENT_REQUIRED } else { StatusCode::CREATED }
}

#[tokio::test]
async fn claim_that_arrives_after_its_release_keeps_no_key() {
    let redis = RedisServer::start(&[]).await;
    for takes_own_connections in [false, true] {
        let _: String = redis.command("FLUSHALL").await;
        let (line, address) = LateLine::to(redis.address()).await;
        let store = RedisStore::builder(&format!("redis://{address}/"));
        let store = if takes_own_connections { store.wait_replicas(0, Duration::from_millis(10)) } else { store };
        let registry = Registry::new(store.open().await.expect("the store opens"));
        let app = Router::new().route("/charges", post(pays_later)).with_state(Runs::free());
        let server = Server::start(app.layer(registry.layer())).await;
        line.keep_next();
        assert_eq!(server.post_with_key("/charges", "k").await.status, StatusCode::PAYMENT_REQUIRED);
        line.deliver().await;
        assert_eq!(server.post_with_key("/charges", "k").await.status, StatusCode::CREATED);
    }
}
