//! One client fills a store that has a size limit: the requests of other clients are still served.

use axum::Router;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Registry, RegistryBuilder, SealingKey, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Runs, Server, answer, sealing_key};

#[idempotent(scope = "full-store-charges")]
async fn create_charge(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::CREATED, body)
}

#[idempotent(scope = "full-store-exact-charges")]
async fn create_exact_charge(State(runs): State<Runs>, _tx: Tx<sqlx::Sqlite>, body: String) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::CREATED, body)
}

const BODY_BYTES: usize = 3_000;
const BOUND: usize = 512 * 1024;

/// The client that sends a request.
#[derive(Clone, Copy, Debug)]
enum Client {
    /// A client whose name the registry gets as the caller.
    Named(&'static str),
    /// A client without a caller name. Its `Authorization` header identifies it.
    WithToken(&'static str),
    Anonymous,
}

fn caller(head: &Parts) -> Option<String> {
    let text = |headers: &HeaderMap| headers.get("x-caller")?.to_str().ok().map(str::to_owned);
    text(&head.headers)
}

async fn serve(registry: RegistryBuilder, runs: &Runs) -> Server {
    let app = Router::new().route("/charges", post(create_charge)).route("/exact-charges", post(create_exact_charge));
    Server::start(app.with_state(runs.clone()).layer(registry.caller(caller).build().layer())).await
}

impl Client {
    fn label(self) -> String {
        match self {
            Self::Named(name) => format!("named-{name}"),
            Self::WithToken(token) => format!("token-{token}"),
            Self::Anonymous => "anonymous".to_owned(),
        }
    }
}

async fn send(server: &Server, path: &str, client: Client, key: &str) -> Answer {
    let request = server.post(path).header("idempotency-key", key).body("x".repeat(BODY_BYTES));
    answer(match client {
        Client::Named(name) => request.header("x-caller", name),
        Client::WithToken(token) => request.header("authorization", format!("Bearer {token}")),
        Client::Anonymous => request,
    })
    .await
}

/// Sends new keys of `mallory` until the store takes no more of them. Then checks that the others are served, and that
/// records are replayed.
async fn fill(server: &Server, path: &str, mallory: Client, others: &[Client]) {
    let mut kept = 0;
    let rejected = loop {
        let answer = send(server, path, mallory, &format!("{}-{kept}", mallory.label())).await;
        if answer.status != StatusCode::CREATED {
            break answer;
        }
        kept += 1;
    };
    assert_eq!(rejected.rejection(), "store_unavailable");
    let used = kept * BODY_BYTES;
    assert!((BOUND / 8..=BOUND / 2).contains(&used), "{mallory:?} has stored {used} bytes");
    for (number, &other) in others.iter().enumerate() {
        let key = format!("{}-beside-{}-{number}", other.label(), mallory.label());
        let first = send(server, path, other, &key).await;
        assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false), "{other:?} beside {mallory:?}");
        assert!(send(server, path, other, &key).await.is_replay(), "{other:?} beside {mallory:?}");
    }
    for number in [0, kept - 1] {
        assert!(send(server, path, mallory, &format!("{}-{number}", mallory.label())).await.is_replay());
    }
}

async fn one_client_stops_no_other(registry: RegistryBuilder, path: &str, mallory: Client) {
    let runs = Runs::free();
    let server = serve(registry, &runs).await;
    let others = [Client::Named("alice"), Client::WithToken("bob"), Client::Anonymous];
    let same_kind = std::mem::discriminant(&mallory);
    let is_mallory = |other: &Client| {
        // Requests without a caller and without credentials cannot be told apart.
        matches!(mallory, Client::Anonymous) && std::mem::discriminant(other) == same_kind
    };
    let others: Vec<_> = others.into_iter().filter(|other| !is_mallory(other)).collect();
    fill(&server, path, mallory, &others).await;
}

const HOSTILE: [Client; 3] = [Client::Named("mallory"), Client::WithToken("mallory"), Client::Anonymous];

fn registries(store: impl StoreAdmin + Clone) -> [RegistryBuilder; 2] {
    let secret: SealingKey = sealing_key(1);
    [Registry::builder(store.clone()), Registry::builder(store).digest_keys().digest_with(secret)]
}

#[tokio::test]
async fn client_that_fills_memory_stops_no_other() {
    for mallory in HOSTILE {
        for number in 0..2 {
            let store = MemoryStore::builder().max_bytes(BOUND).build();
            let [plain, digested] = registries(store);
            let registry = if number == 0 { plain } else { digested };
            one_client_stops_no_other(registry, "/charges", mallory).await;
        }
    }
}

async fn bounded(file: &SqliteFile) -> SqliteStore {
    SqliteStore::builder(file.path()).max_bytes(BOUND as u64).open().await.expect("it opens")
}

#[tokio::test]
async fn client_that_fills_sqlite_stops_no_other() {
    for mallory in HOSTILE {
        for path in ["/charges", "/exact-charges"] {
            let file = SqliteFile::new();
            one_client_stops_no_other(Registry::builder(bounded(&file).await), path, mallory).await;
        }
    }
}
