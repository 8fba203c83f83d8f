//! Many writers of one SQLite file: callers share commits, processes share the file, and no caller gets a wrong answer.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt as _, poll};
use idempotent_runtime::store::{Claim, EntryState, Held, SqliteStore, Store as _, StoreAdmin, StoreError, Token};
use idempotent_runtime::{Record, RecordKey};
use idempotent_tests::eventually;
use idempotent_tests::sqlite::{
    SecondProcess, SqliteFile, acquire, claim_request, record, record_key, second_process, tell, wait_for_go,
};
use sqlx::Executor as _;

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

/// Claims all keys at once. Returns the numbers of the keys that it acquired.
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

/// Claims of one store, whose completions all wait for another connection's write lock.
struct Queued {
    file: SqliteFile,
    store: SqliteStore,
    claims: HashMap<&'static str, (RecordKey, Token)>,
}

impl Queued {
    async fn claim(names: &[&'static str]) -> Self {
        let file = SqliteFile::new();
        let store = SqliteStore::builder(file.path()).delete_expired_every(TTL).open().await.expect("a new file opens");
        let mut claims = HashMap::new();
        for &name in names {
            let key = record_key(name);
            let token = acquire(&store, &key).await;
            claims.insert(name, (key, token));
        }
        Self { file, store, claims }
    }

    /// Completes all claims at once. Returns the answer that each caller gets.
    async fn complete(&self, record: &Record) -> HashMap<&'static str, Result<Held, StoreError>> {
        let mut lock = self.file.connect().await;
        lock.execute("BEGIN IMMEDIATE").await.expect("no other connection writes");
        let mut completions = Vec::new();
        for (&name, (key, token)) in &self.claims {
            let mut completion = self.store.complete(key, *token, record.clone(), TTL).boxed();
            // After the first poll, the completion is in the queue, because the writer waits for the lock.
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

/// The statement fails. With `ROLLBACK`, SQLite also ends the whole transaction.
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
async fn a_commit_that_fails_is_reported_as_no_success() {
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
            Err(StoreError::Unavailable(_) | StoreError::RecordRejected(_)) => poison,
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
    let claim = async || store.claim(&record_key("new"), claim_request()).await;
    eventually(claim, Result::is_ok).await.expect("awaited");
}
