//! The API as the program serves it, with a card network that can be held, a store that can fail, and a record of all
//! answers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use idempotent_runtime::Registry;
use idempotent_tests::{FaultyStore, PATIENCE, Runs, Server};
use stripe_dialect::{Accounts, App, Authorisation, Books, CardNetwork, Charge, TestCards, registry, router};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::sdk::SECRET_KEY;

pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) books: Books,
    pub(crate) store: FaultyStore,
    /// The card network's authorisations.
    pub(crate) runs: Runs,
    pub(crate) door: Door,
    _folder: TempDir,
}

impl Bench {
    pub(crate) async fn new(runs: Runs) -> Self {
        Self::with_registry(runs, registry).await
    }

    pub(crate) async fn with_registry(runs: Runs, registry: impl FnOnce(FaultyStore) -> Registry) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let books = Books::open(&folder.path().join("books.db")).await.expect("the books open");
        let store = FaultyStore::new();
        let network = Arc::new(Held(runs.clone()));
        let accounts = Accounts::new([SECRET_KEY]).expect("a test key");
        let app = router(App { accounts, books: books.clone(), network }, &registry(store.clone()));
        let door = Door::default();
        let server = Server::start(door.guard(app)).await;
        Self { server, books, store, runs, door, _folder: folder }
    }

    pub(crate) async fn payments(&self) -> i64 {
        self.books.count().await.expect("the books can be read")
    }
}

/// A card network that authorises a charge when the test allows it.
struct Held(Runs);

impl CardNetwork for Held {
    fn charge(&self, reference: &str, charge: Charge) -> BoxFuture<'static, Authorisation> {
        let (runs, authorisation) = (self.0.clone(), TestCards.charge(reference, charge));
        async move {
            runs.run().await;
            authorisation.await
        }
        .boxed()
    }
}

/// Records every answer, and the key of its request as it was received.
#[derive(Clone, Default)]
pub(crate) struct Door(watch::Sender<Vec<(String, u16)>>);

impl Door {
    pub(crate) fn guard(&self, app: Router) -> Router {
        app.layer(middleware::from_fn_with_state(self.clone(), see))
    }

    /// The key and the status of each answer so far.
    pub(crate) fn seen(&self) -> Vec<(String, u16)> {
        self.0.borrow().clone()
    }

    /// Waits until an answer with this key and status has passed.
    pub(crate) async fn until_seen(&self, key: &str, status: u16) {
        let awaited = (key.to_owned(), status);
        let mut seen = self.0.subscribe();
        let seen = timeout(PATIENCE, seen.wait_for(|seen| seen.contains(&awaited))).await;
        seen.unwrap_or_else(|_| panic!("no {awaited:?}, only {:?}", self.seen())).expect("the door is not dropped");
    }
}

async fn see(State(door): State<Door>, request: Request, next: Next) -> Response {
    let key =
        request.headers().get("idempotency-key").map_or("", |key| key.to_str().expect("visible ASCII")).to_owned();
    let response = next.run(request).await;
    door.0.send_modify(|seen| seen.push((key, response.status().as_u16())));
    response
}

/// Starts a proxy to the server. The proxy breaks the connection when the first answer is on its way, and works from
/// then on. Returns its address.
pub(crate) async fn line_that_loses_the_first_answer(server: &Server) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let entrance = listener.local_addr().expect("a bound listener has an address").to_string();
    let address = server.address();
    let connect = async move || TcpStream::connect(address).await.expect("the server listens");
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        let (mut from_client, mut to_client) = client.split();
        let mut server = connect().await;
        let (mut from_server, mut to_server) = server.split();
        let mut answer = [0];
        tokio::select! {
            _ = copy(&mut from_client, &mut to_server) => {}
            _ = from_server.read_exact(&mut answer) => {}
        }
        let _ = to_client.shutdown().await;
        drop((client, server));
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = connect().await;
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    entrance
}
