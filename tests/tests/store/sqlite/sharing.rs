//! Many writers of one SQLite file: callers share commits, processes share the file, and nobody is told what is not so.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use futures_util::{FutureExt as _, poll};
use idempotent_runtime::store::{Claim, ClaimRequest, EntryState, Held, SqliteStore, Store as _, StoreError, Token};
use idempotent_runtime::{Record, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::{
    SecondProcess, SqliteFile, acquire, claim_request, eventually, record, record_key, second_process, tell,
    wait_for_go,
};
use idempotent_tests::{Answer, Runs, Server, answer};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Sqlite};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const TTL: Duration = Duration::from_hours(1);

#[tokio::test(flavor = "multi_thread")]
async fn of_64_claimants_of_two_stores_one_wins() {
    let file = SqliteFile::new();
    let stores = [SqliteStore::open(file.path()).await.unwrap(), SqliteStore::open(file.path()).await.unwrap()];
    for round in 0..5 {
        let key = record_key(&format!("round {round}"));
        let claimants: Vec<_> = (0..64)
            .map(|number| {
                let (store, key) = (stores[number % 2].clone(), key.clone());
                tokio::spawn(async move { store.claim(&key, claim_request()).await.unwrap() })
            })
            .collect();

        let claims: Vec<Claim> = join_all(claimants).await.into_iter().map(Result::unwrap).collect();

        let won = claims.iter().filter(|claim| **claim == Claim::Acquired { attempt: 1 }).count();
        let lost = claims.iter().filter(|claim| matches!(claim, Claim::InFlight { .. })).count();
        assert_eq!((won, lost), (1, 63));
    }
}

const KEYS: usize = 40;

/// One claimant a key, all at once; the numbers of the keys that it won.
async fn race(store: &SqliteStore) -> Vec<usize> {
    let claimants = (0..KEYS).map(|number| async move {
        let claim = store.claim(&record_key(&format!("{number}")), claim_request()).await.expect("the store answers");
        (number, claim)
    });
    let claims = join_all(claimants).await;
    claims.into_iter().filter(|(_, claim)| matches!(claim, Claim::Acquired { .. })).map(|(number, _)| number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_one_wins() {
    if let Some(path) = second_process() {
        let store = SqliteStore::open(path).await.unwrap();
        tell("ready");
        wait_for_go();
        let won: Vec<String> = race(&store).await.iter().map(usize::to_string).collect();
        return tell(&won.join(" "));
    }
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    let mut other = SecondProcess::start(of_two_processes_one_wins, &file.path());
    assert_eq!(other.told(), "ready");
    other.go();

    let mut won = race(&store).await;

    won.extend(other.told().split_whitespace().map(|number| number.parse::<usize>().unwrap()));
    won.sort_unstable();
    assert_eq!(won, (0..KEYS).collect::<Vec<_>>(), "each key has one winner");
}

#[tokio::test]
async fn what_was_answered_survives_the_death_of_the_process() {
    let (done, running) = (record_key("done"), record_key("running"));
    if let Some(path) = second_process() {
        let store = SqliteStore::open(path).await.unwrap();
        acquire(&store, &running).await;
        let token = acquire(&store, &done).await;
        assert_eq!(store.complete(&done, token, record("paid"), TTL).await.unwrap(), Held::Yes);
        tell("answered");
        return wait_for_go();
    }
    let file = SqliteFile::new();
    let mut other = SecondProcess::start(what_was_answered_survives_the_death_of_the_process, &file.path());
    assert_eq!(other.told(), "answered");
    drop(other); // SIGKILL

    let store = SqliteStore::open(file.path()).await.unwrap();
    assert_eq!(store.claim(&done, claim_request()).await.unwrap(), Claim::Completed(record("paid")));
    assert!(matches!(store.claim(&running, claim_request()).await.unwrap(), Claim::InFlight { .. }));
}

/// Claims of one store, and their completions all queued up behind somebody else's write lock when this is done.
struct Queued {
    file: SqliteFile,
    store: SqliteStore,
    claims: HashMap<&'static str, (RecordKey, Token)>,
}

impl Queued {
    async fn claim(names: &[&'static str]) -> Self {
        let file = SqliteFile::new();
        let store = SqliteStore::builder(file.path()).sweep_every(TTL).open().await.expect("a new file opens");
        let mut claims = HashMap::new();
        for &name in names {
            let key = record_key(name);
            let token = acquire(&store, &key).await;
            claims.insert(name, (key, token));
        }
        Self { file, store, claims }
    }

    /// Completes all claims at once, and says what each caller was told.
    async fn complete(&self, record: &Record) -> HashMap<&'static str, Result<Held, StoreError>> {
        let mut lock = self.file.connect().await;
        lock.execute("BEGIN IMMEDIATE").await.expect("nobody else writes");
        let mut completions = Vec::new();
        for (&name, (key, token)) in &self.claims {
            let mut completion = self.store.complete(key, *token, record.clone(), TTL).boxed();
            // Once polled, it is in the queue: the writer waits for our lock.
            assert!(poll!(&mut completion).is_pending());
            completions.push(async move { (name, completion.await) });
        }
        lock.execute("COMMIT").await.expect("the lock is ours");
        join_all(completions).await.into_iter().collect()
    }

    async fn is_completed(&self, name: &str) -> bool {
        let entry = self.store.get(&self.claims[name].0).await.expect("the store answers").expect("an entry");
        matches!(entry.state, EntryState::Completed { .. })
    }
}

const NAMES: [&str; 8] = ["a", "b", "c", "poison", "d", "e", "f", "g"];

#[tokio::test]
async fn writes_that_wait_together_share_one_commit() {
    let queued = Queued::claim(&NAMES).await;
    let before = queued.file.commits();
    assert!(before >= NAMES.len(), "one after the other, each had a commit of its own: {before}");

    let told = queued.complete(&record("paid")).await;

    assert!(told.values().all(|held| matches!(held, Ok(Held::Yes))), "{told:?}");
    assert_eq!(queued.file.commits() - before, 1);
}

/// The statement fails, and takes the whole transaction with it.
#[tokio::test]
async fn a_write_that_fails_harms_no_other_of_its_batch() {
    for reaction in ["ABORT", "ROLLBACK"] {
        let queued = Queued::claim(&NAMES).await;
        let trigger = format!(
            "CREATE TRIGGER poison BEFORE UPDATE ON idempotency_records WHEN NEW.key LIKE '%poison'
             BEGIN SELECT RAISE({reaction}, 'poisoned'); END"
        );
        queued.file.execute(&trigger).await;

        only_poison_fails(&queued).await;
    }
}

/// Every statement succeeds, and `COMMIT` fails.
#[tokio::test]
async fn a_commit_that_fails_is_told_to_nobody_as_success() {
    let queued = Queued::claim(&NAMES).await;
    queued
        .file
        .execute(
            "CREATE TABLE parents (id INTEGER PRIMARY KEY);
             CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER poison AFTER UPDATE ON idempotency_records WHEN NEW.key LIKE '%poison'
             BEGIN INSERT INTO children VALUES (1); END",
        )
        .await;

    only_poison_fails(&queued).await;
}

async fn only_poison_fails(queued: &Queued) {
    let told = queued.complete(&record("paid")).await;
    for name in NAMES {
        let poison = name == "poison";
        let as_expected = match &told[name] {
            Ok(Held::Yes) => !poison,
            Err(StoreError::Unavailable(_)) => poison,
            _ => false,
        };
        assert!(as_expected, "{name}: {:?}", told[name]);
        assert_eq!(queued.is_completed(name).await, !poison, "{name}");
    }
    queued.file.execute("DROP TRIGGER poison").await;
    let (key, token) = &queued.claims["poison"];
    let again = queued.store.complete(key, *token, record("late"), TTL).await;
    assert!(matches!(again, Ok(Held::Yes)), "the writer goes on: {again:?}");
}

#[tokio::test]
async fn a_lock_that_stays_is_an_error_and_replays_go_on() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).busy_timeout(Duration::from_millis(20)).open().await.unwrap();
    let key = record_key("done");
    let token = acquire(&store, &key).await;
    assert_eq!(store.complete(&key, token, record("paid"), TTL).await.unwrap(), Held::Yes);
    let mut lock = file.connect().await;
    lock.execute("BEGIN IMMEDIATE").await.unwrap();

    let rejected = store.claim(&record_key("new"), claim_request()).await;
    assert!(matches!(rejected, Err(StoreError::Unavailable(_))), "{rejected:?}");
    assert_eq!(store.claim(&key, claim_request()).await.unwrap(), Claim::Completed(record("paid")));

    lock.execute("ROLLBACK").await.unwrap();
    eventually("claims go on", async || store.claim(&record_key("new"), claim_request()).await.is_ok()).await;
}

/// Two processes on one file: `/plain` of the first one runs while the lock is held for longer than its lease.
struct LongLock {
    file: SqliteFile,
    first: Server,
    second: Server,
    first_store: SqliteStore,
    plain: Runs,
    in_transaction: Runs,
}

#[idempotent(scope = "long-lock-plain", lease = "300ms")]
async fn plain(State(Handlers { plain, .. }): State<Handlers>) -> String {
    format!("run {}", plain.run().await)
}

#[idempotent(scope = "long-lock-transaction", cache = [200])]
async fn in_transaction(mut tx: Tx<Sqlite>, State(handlers): State<Handlers>, answer: String) -> StatusCode {
    handlers.in_transaction.run().await;
    let status = answer.strip_suffix(" in a savepoint");
    if status.is_some() {
        std::mem::forget(tx.begin().await.expect("a savepoint"));
    }
    drop(tx);
    status.unwrap_or(&answer).parse().expect("a status")
}

#[derive(Clone)]
struct Handlers {
    plain: Runs,
    in_transaction: Runs,
}

impl LongLock {
    async fn new() -> Self {
        let file = SqliteFile::new();
        let first_store = SqliteStore::open(file.path()).await.expect("the store answers");
        let second_store = SqliteStore::open(file.path()).await.expect("the store answers");
        let handlers = Handlers { plain: Runs::held(), in_transaction: Runs::held() };
        let router = Router::new()
            .route("/plain", post(plain))
            .route("/in-transaction", post(in_transaction))
            .with_state(handlers.clone());
        let first = Server::start(router.clone().layer(Registry::new(first_store.clone()).layer())).await;
        let second = Server::start(router.layer(Registry::new(second_store).layer())).await;
        let Handlers { plain, in_transaction } = handlers;
        Self { file, first, second, first_store, plain, in_transaction }
    }

    /// Without the time of the lock, it would be over.
    async fn until_the_lease_is_over(&self) {
        eventually("the lease is over", async || {
            let page = self.first_store.list(None, 10).await.expect("the store answers");
            page.entries.iter().any(|entry| matches!(entry.state, EntryState::Claimed { lease: None, .. }))
        })
        .await;
    }

    /// A duplicate in the second process waits for the lock, which `unlock` opens.
    async fn executes_once(&self, unlock: impl Future<Output = ()>) {
        let duplicate = async { tokio::join!(self.second.post_with_key("/plain", "k"), unlock).0 };
        let duplicate = tokio::select! {
            duplicate = duplicate => duplicate,
            () = self.plain.until_started(2) => panic!("the duplicate is executed too"),
        };
        assert_eq!(duplicate.status, StatusCode::CONFLICT, "{}", duplicate.text());
        self.plain.let_finish(1);
    }
}

/// A `Tx` of another process holds the lock until it answers with `status`.
async fn long_transaction(status: &str) {
    let shop = LongLock::new().await;
    let first = shop.first.post_with_key("/plain", "k");
    let rest = async {
        shop.plain.until_started(1).await;
        let holder =
            answer(shop.second.post("/in-transaction").header("idempotency-key", "tx").body(status.to_owned()));
        let judged = async {
            shop.in_transaction.until_started(1).await;
            shop.until_the_lease_is_over().await;
            shop.executes_once(async { shop.in_transaction.let_finish(1) }).await;
        };
        tokio::join!(holder, judged).0
    };
    let (first, holder) = tokio::join!(first, rest);
    assert_eq!((first.status.as_u16(), holder.status.as_str()), (200, status));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transaction_that_commits_ends_no_lease() {
    long_transaction("200").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transaction_that_rolls_back_ends_no_lease() {
    long_transaction("500").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lock_of_another_program_ends_no_lease() {
    let shop = LongLock::new().await;
    let first = shop.first.post_with_key("/plain", "k");
    let rest = async {
        shop.plain.until_started(1).await;
        let mut lock = shop.file.connect().await;
        lock.execute("BEGIN IMMEDIATE").await.unwrap();
        let unlock = async {
            shop.until_the_lease_is_over().await;
            lock.execute("ROLLBACK").await.unwrap();
        };
        shop.executes_once(unlock).await;
    };
    let (first, ()) = tokio::join!(first, rest);
    assert_eq!(first.status.as_u16(), 200);
}

/// A claim that is not renewed.
fn brief_claim() -> ClaimRequest {
    ClaimRequest { lease: Duration::from_millis(500), ..claim_request() }
}

impl LongLock {
    async fn lease_until(&self) -> i64 {
        self.file.number("SELECT lease_until FROM idempotency_records WHERE state = 'claimed'").await
    }
}

/// Begins a transaction in one of the processes, under a key of its own.
fn begin(process: &Server, key: &str, status: &str) -> JoinHandle<Answer> {
    let request = process.post("/in-transaction").header("idempotency-key", key).body(status.to_owned());
    tokio::spawn(answer(request))
}

/// Another process tries again and again, so that it gets the lock as soon as that is free.
async fn first_after(file: &SqliteFile, first_try: oneshot::Sender<()>) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(file.path()).busy_timeout(Duration::ZERO);
    let mut connection = options.connect().await.expect("the file opens");
    let mut first_try = Some(first_try);
    while connection.execute("BEGIN IMMEDIATE").await.is_err() {
        if let Some(first_try) = first_try.take() {
            first_try.send(()).expect("it is waited for");
        }
    }
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_process_gets_the_lock_before_its_time_is_made_up() {
    for how in ["200", "500", "500 in a savepoint"] {
        let shop = LongLock::new().await;
        shop.first_store.claim(&record_key("k"), brief_claim()).await.unwrap();
        let lease_until = shop.lease_until().await;
        let holder = begin(&shop.second, "tx", how);
        shop.in_transaction.until_started(1).await;
        shop.until_the_lease_is_over().await;

        let (first_try, tried) = oneshot::channel();
        let LongLock { file, in_transaction, .. } = &shop;
        let (mut next, ()) = tokio::join!(first_after(file, first_try), async {
            tried.await.unwrap();
            in_transaction.let_finish(1);
        });
        let seen: i64 = sqlx::query_scalar("SELECT lease_until FROM idempotency_records WHERE key LIKE '%k'")
            .fetch_one(&mut next)
            .await
            .unwrap();
        next.execute("ROLLBACK").await.unwrap();
        holder.await.unwrap();
        assert!(seen > lease_until, "{how}: {seen} is no later than {lease_until}");
    }
}

/// Several wait for one lock. What each of them adds must not keep the lease of a dead process alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn time_of_a_lock_is_added_to_a_lease_once() {
    let shop = LongLock::new().await;
    let begun = Instant::now();
    shop.first_store.claim(&record_key("k"), brief_claim()).await.unwrap();
    let lease_until = shop.lease_until().await;
    let holders: Vec<_> = (0..3)
        .flat_map(|number| [(number, &shop.first), (number + 3, &shop.second)])
        .map(|(number, process)| begin(process, &number.to_string(), "200"))
        .collect();
    for number in 1..=holders.len() {
        shop.in_transaction.until_started(number).await;
        // Long enough to count.
        tokio::time::sleep(Duration::from_millis(60)).await;
        shop.in_transaction.let_finish(1);
    }
    for holder in holders {
        assert_eq!(holder.await.unwrap().status, StatusCode::OK);
    }
    let added = shop.lease_until().await - lease_until;
    let passed = i64::try_from(begun.elapsed().as_millis()).unwrap();
    assert!((1..=passed).contains(&added), "{added} of {passed} milliseconds");
}
