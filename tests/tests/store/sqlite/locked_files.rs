//! The database or its file of leases is locked for longer than a lease, by a handler's transaction or another program.
//! However the lock ends, no handler that runs in another process loses its lease.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::sqlite::{SecondProcess, SqliteFile, second_process, tell, wait_for_go};
use idempotent_tests::{Answer, Runs, Server, answer};
use sqlx::{Executor as _, Sqlite};

#[derive(Clone)]
struct Handlers {
    plain: Runs,
    in_transaction: Runs,
}

#[idempotent(scope = "locked-plain", lease = "300ms")]
async fn plain(State(Handlers { plain, .. }): State<Handlers>) -> String {
    format!("run {}", plain.run().await)
}

#[idempotent(scope = "locked-reject", lease = "300ms", after_crash = "reject")]
async fn at_most_once(State(Handlers { plain, .. }): State<Handlers>) -> String {
    format!("run {}", plain.run().await)
}

#[idempotent(scope = "locked-leases", lease = "900ms")]
async fn longer(State(Handlers { plain, .. }): State<Handlers>) -> String {
    format!("run {}", plain.run().await)
}

#[idempotent(scope = "locked-leases-reject", lease = "900ms", after_crash = "reject")]
async fn longer_at_most_once(State(Handlers { plain, .. }): State<Handlers>) -> String {
    format!("run {}", plain.run().await)
}

#[idempotent(scope = "locked-transaction", cache = [200])]
async fn in_transaction(_: Tx<Sqlite>, State(handlers): State<Handlers>, status: String) -> StatusCode {
    handlers.in_transaction.run().await;
    status.parse().expect("a status")
}

/// Continues to run after SQLite has ended its transaction.
#[idempotent(scope = "locked-ended")]
async fn ended(mut tx: Tx<Sqlite>, State(handlers): State<Handlers>) -> StatusCode {
    let once = "INSERT OR ROLLBACK INTO charges (id) VALUES (1)";
    tx.execute(once).await.expect("the first one");
    handlers.in_transaction.run().await;
    assert!(tx.execute(once).await.is_err(), "it is there");
    handlers.in_transaction.run().await;
    StatusCode::INTERNAL_SERVER_ERROR
}

#[idempotent(scope = "locked-short")]
async fn short(_: Tx<Sqlite>) -> StatusCode {
    tokio::time::sleep(Duration::from_millis(10)).await;
    StatusCode::OK
}

async fn serve(path: PathBuf, handlers: &Handlers) -> (Server, SqliteStore) {
    let store = SqliteStore::open(path).await.expect("the store opens");
    let router = Router::new()
        .route("/plain", post(plain))
        .route("/at-most-once", post(at_most_once))
        .route("/longer", post(longer))
        .route("/longer-at-most-once", post(longer_at_most_once))
        .route("/in-transaction", post(in_transaction))
        .route("/ended", post(ended))
        .route("/short", post(short))
        .with_state(handlers.clone());
    (Server::start(router.layer(Registry::new(store.clone()).layer())).await, store)
}

/// Three servers on one file, as three processes: a handler runs in the first one, the second one locks the file, and
/// duplicates come to the third one.
struct Shop {
    file: SqliteFile,
    first: Server,
    second: Server,
    third: Server,
    third_store: SqliteStore,
    plain: Runs,
    in_transaction: Runs,
}

impl Shop {
    async fn new() -> Self {
        let file = SqliteFile::new();
        file.execute("CREATE TABLE charges (id INTEGER PRIMARY KEY)").await;
        let handlers = Handlers { plain: Runs::held(), in_transaction: Runs::held() };
        let (first, _) = serve(file.path(), &handlers).await;
        let (second, _) = serve(file.path(), &handlers).await;
        let (third, third_store) = serve(file.path(), &handlers).await;
        let Handlers { plain, in_transaction } = handlers;
        Self { file, first, second, third, third_store, plain, in_transaction }
    }

    /// Sends a duplicate while the file is locked. Checks that it gets `in_flight` after `unlock`, and is not executed.
    async fn executes_once(&self, path: &str, unlock: impl Future<Output = ()>) {
        self.file.first_leases_over(0).await;
        let duplicate = async { tokio::join!(self.third.post_with_key(path, "k"), unlock).0 };
        let duplicate = tokio::select! {
            duplicate = duplicate => duplicate,
            () = self.plain.until_started(2) => panic!("the duplicate is executed too"),
        };
        assert_eq!(duplicate.status, StatusCode::CONFLICT, "{}", duplicate.text());
        assert!(duplicate.rejection().contains("in_flight"), "{}", duplicate.text());
        let unknown = idempotent_runtime::store::StoreAdmin::unknown_outcomes(&self.third_store).await;
        assert!(unknown.expect("the store answers").is_empty(), "the handler runs");
        self.plain.let_finish(1);
    }

    /// Sends a request to `path`, and runs `rest` while its handler runs.
    async fn beside(&self, path: &str, rest: impl Future<Output = ()>) {
        let first = self.first.post_with_key(path, "k");
        let rest = async {
            self.plain.until_started(1).await;
            rest.await;
        };
        let (first, ()) = tokio::join!(first, rest);
        assert_eq!((first.status, first.text()), (StatusCode::OK, "run 1"));
    }
}

fn in_transaction_of(server: &Server, status: &str) -> impl Future<Output = Answer> {
    answer(server.post("/in-transaction").header("idempotency-key", "tx").body(status.to_owned()))
}

async fn long_transaction(path: &str, status: &str) {
    let shop = Shop::new().await;
    let locked = async {
        let looks = async {
            shop.in_transaction.until_started(1).await;
            shop.executes_once(path, async { shop.in_transaction.let_finish(1) }).await;
        };
        let (holder, ()) = tokio::join!(in_transaction_of(&shop.second, status), looks);
        assert_eq!(holder.status.as_str(), status);
    };
    shop.beside(path, locked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transaction_that_commits_ends_no_lease() {
    long_transaction("/plain", "200").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transaction_that_rolls_back_ends_no_lease() {
    long_transaction("/plain", "500").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transaction_makes_no_outcome_unknown() {
    long_transaction("/at-most-once", "500").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transaction_that_panics_ends_no_lease() {
    let shop = Shop::new().await;
    let locked = async {
        let looks = async {
            shop.in_transaction.until_started(1).await;
            shop.executes_once("/plain", async { shop.in_transaction.let_finish(1) }).await;
        };
        let holder = shop.second.post("/in-transaction").header("idempotency-key", "tx").body("no status").send();
        // The panic closes the connection of the request.
        let (holder, ()) = tokio::join!(holder, looks);
        assert!(holder.is_err(), "{holder:?}");
    };
    shop.beside("/plain", locked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_that_sqlite_ends_ends_no_lease() {
    let shop = Shop::new().await;
    let locked = async {
        let looks = async {
            shop.in_transaction.until_started(1).await;
            shop.executes_once("/plain", async { shop.in_transaction.let_finish(1) }).await;
            shop.in_transaction.let_finish(1);
        };
        let (holder, ()) = tokio::join!(shop.second.post_with_key("/ended", "tx"), looks);
        assert_eq!(holder.status, StatusCode::INTERNAL_SERVER_ERROR);
    };
    shop.beside("/plain", locked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_process_of_a_transaction_ends_no_lease() {
    if let Some(path) = second_process() {
        let handlers = Handlers { plain: Runs::free(), in_transaction: Runs::held() };
        let (server, _) = serve(path, &handlers).await;
        let holding = async {
            handlers.in_transaction.until_started(1).await;
            tell("holding");
            tokio::task::spawn_blocking(wait_for_go).await.expect("it is killed");
        };
        tokio::join!(in_transaction_of(&server, "200"), holding);
        return;
    }
    let shop = Shop::new().await;
    let locked = async {
        let mut other = SecondProcess::start(killed_process_of_a_transaction_ends_no_lease, &shop.file.path());
        assert_eq!(other.told(), "holding");
        shop.executes_once("/plain", async move { drop(other) }).await;
    };
    shop.beside("/plain", locked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lock_of_another_program_ends_no_lease() {
    let shop = Shop::new().await;
    let locked = async {
        let mut lock = shop.file.connect().await;
        lock.execute("BEGIN IMMEDIATE").await.unwrap();
        let unlock = async {
            lock.execute("ROLLBACK").await.unwrap();
        };
        shop.executes_once("/plain", unlock).await;
    };
    shop.beside("/plain", locked).await;
}

/// Locks the file of leases. Meanwhile, the leases are renewed in the database.
async fn locked_leases(path: &str) {
    let shop = Shop::new().await;
    let locked = async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(shop.file.leases());
        let mut lock = sqlx::ConnectOptions::connect(&options).await.expect("the file of leases answers");
        lock.execute("BEGIN IMMEDIATE").await.expect("the file of leases answers");
        let locked = Instant::now();
        for millis in [2_000, 2_500] {
            while locked.elapsed() < Duration::from_millis(millis) {
                let duplicate = shop.third.post_with_key(path, "k").await;
                assert_eq!(shop.plain.started(), 1, "the duplicate is executed too: {}", duplicate.text());
                assert!(duplicate.rejection().contains("in_flight"), "{}", duplicate.text());
            }
            let unknown = idempotent_runtime::store::StoreAdmin::unknown_outcomes(&shop.third_store).await;
            assert!(unknown.expect("the store answers").is_empty(), "the handler runs");
            let new = shop.third.post_with_key("/short", &format!("{millis}")).await;
            assert_eq!(new.status, StatusCode::OK, "a key without a claim needs no file of leases: {}", new.text());
            if millis == 2_000 {
                lock.execute("ROLLBACK").await.expect("the file of leases answers");
            }
        }
        shop.plain.let_finish(1);
    };
    shop.beside(path, locked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lock_of_the_leases_ends_no_lease() {
    locked_leases("/longer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lock_of_the_leases_makes_no_outcome_unknown() {
    locked_leases("/longer-at-most-once").await;
}

/// SQLite's lock is not fair: a process may never get it while others always have a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowd_of_short_transactions_ends_no_lease() {
    let shop = Shop::new().await;
    let crowded = async {
        let crowd = join_all((0..4).map(|client| {
            let second = &shop.second;
            async move {
                for number in 0.. {
                    second.post_with_key("/short", &format!("{client}-{number}")).await;
                }
            }
        }));
        let duplicates = async {
            loop {
                let duplicate = shop.third.post_with_key("/plain", "k").await;
                assert_eq!(shop.plain.started(), 1, "the duplicate is executed too: {}", duplicate.text());
                assert_eq!(duplicate.status, StatusCode::CONFLICT, "{}", duplicate.text());
            }
        };
        tokio::select! {
            _ = crowd => {}
            () = duplicates => {}
            () = shop.file.first_leases_over(900) => {}
            () = shop.plain.until_started(2) => panic!("the duplicate is executed too"),
        }
        shop.plain.let_finish(1);
    };
    shop.beside("/plain", crowded).await;
}
