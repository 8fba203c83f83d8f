//! Random operations on a store, whose answers are compared with those of a state machine.

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, MemoryStore, RedisStore, SqliteStore, StoreAdmin, Token,
};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::stores;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One call. Keys, tokens, fingerprints and records are small numbers, so that calls often share them.
#[derive(Clone, Debug)]
enum Operation {
    Claim { key: u8, token: u8, fingerprint: u8, after_crash: AfterCrash },
    Renew { key: u8, token: u8 },
    Lapse { key: u8, token: u8 },
    Complete { key: u8, token: u8, record: u8 },
    Release { key: u8, token: u8 },
    Purge { key: u8 },
    Look { key: u8 },
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Claim(Claim),
    Held(Held),
    Purged(bool),
    /// Whether the entry of the key expires. `None` if there is no entry.
    Expires(Option<bool>),
}

#[derive(Clone, Copy)]
struct ModelEntry {
    token: u8,
    fingerprint: u8,
    attempt: u32,
    lapsed: bool,
    expires: bool,
    record: Option<u8>,
}

/// The contract as a state machine.
#[derive(Default)]
struct Model(HashMap<u8, ModelEntry>);

impl Model {
    /// Returns whether the operation releases a token that has no entry under the key.
    fn is_free(&self, operation: &Operation) -> bool {
        let Operation::Release { key, token } = operation else { return false };
        self.0.get(key).is_none_or(|entry| entry.token != *token)
    }

    fn apply(&mut self, operation: &Operation) -> Answer {
        use Operation::{Claim as ClaimIt, Complete, Lapse, Look, Purge, Release, Renew};

        let held = |yes: bool| Answer::Held(if yes { Held::Yes } else { Held::No });
        match *operation {
            ClaimIt { key, token, fingerprint, after_crash } => {
                let attempt = match self.0.get_mut(&key) {
                    None => 1,
                    Some(ModelEntry { record: Some(record), .. }) => {
                        return Answer::Claim(Claim::Completed(numbered(*record)));
                    }
                    Some(own) if own.token == token => return Answer::Claim(Claim::Acquired { attempt: own.attempt }),
                    Some(other) if !other.lapsed => {
                        return Answer::Claim(Claim::InFlight { fingerprint: digest(other.fingerprint) });
                    }
                    Some(dead) if after_crash == AfterCrash::Rerun && dead.fingerprint == fingerprint => {
                        dead.attempt + 1
                    }
                    Some(dead) => {
                        // A claim whose outcome was once reported as unknown no longer expires.
                        dead.expires &= after_crash == AfterCrash::Rerun || dead.fingerprint != fingerprint;
                        return Answer::Claim(Claim::Lapsed { fingerprint: digest(dead.fingerprint) });
                    }
                };
                let expires = after_crash == AfterCrash::Rerun;
                self.0.insert(key, ModelEntry { token, fingerprint, attempt, lapsed: false, expires, record: None });
                Answer::Claim(Claim::Acquired { attempt })
            }
            Renew { key, token } | Lapse { key, token } => {
                let claim = self.0.get_mut(&key).filter(|entry| entry.token == token && entry.record.is_none());
                held(claim.map(|claim| claim.lapsed = matches!(operation, Lapse { .. })).is_some())
            }
            Complete { key, token, record } => {
                let own = self.0.get_mut(&key).filter(|entry| entry.token == token);
                let completed = own.map(|own| {
                    own.record = own.record.or(Some(record));
                    own.expires = true;
                });
                held(completed.is_some())
            }
            Release { key, token } => {
                let claim = self.0.get(&key).filter(|entry| entry.token == token && entry.record.is_none());
                held(claim.is_some() && self.0.remove(&key).is_some())
            }
            Purge { key } => Answer::Purged(self.0.remove(&key).is_some()),
            Look { key } => Answer::Expires(self.0.get(&key).map(|entry| entry.expires)),
        }
    }
}

const LONG: Duration = Duration::from_hours(1);

fn digest(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn numbered(number: u8) -> Record {
    Record::new(
        StatusCode::CREATED,
        Vec::new(),
        RecordedBody::Whole(vec![number].into()),
        digest(number),
        UNIX_EPOCH + Duration::from_millis(u64::from(number)),
    )
}

/// The keys and tokens of one run, which no other run in the same store uses.
struct Names {
    run: Token,
    tokens: HashMap<(u8, u8), Token>,
}

impl Names {
    fn new() -> Self {
        Self { run: Token::unique(), tokens: HashMap::new() }
    }

    fn key(&self, key: u8) -> RecordKey {
        RecordKey::new("model", None, &format!("{:x}-{key}", self.run.as_u128()))
    }

    fn token(&mut self, key: u8, token: u8) -> Token {
        *self.tokens.entry((key, token)).or_insert_with(Token::unique)
    }

    /// Forgets a token that was released, because it cannot claim anything any more. In every store, this holds for a
    /// token that had no claim, as a rule of the conformance suite says. In a Redis Cluster, it also holds for a token
    /// that had one. The engine claims with a new token.
    fn forget_what_was_released(&mut self, operation: &Operation) {
        if let &Operation::Release { key, token } = operation {
            self.tokens.remove(&(key, token));
        }
    }
}

const KEYS: u8 = 3;
const TOKENS: u8 = 4;

async fn ask(store: &impl StoreAdmin, names: &mut Names, operation: &Operation) -> Answer {
    let held = |held: Result<Held, _>| Answer::Held(held.expect("the store answers"));
    match *operation {
        Operation::Claim { key, token: drawn, fingerprint, after_crash } => {
            let request = ClaimRequest::new(names.token(key, drawn), digest(fingerprint))
                .with_lease(LONG)
                .with_ttl(LONG)
                .with_after_crash(after_crash);
            Answer::Claim(store.claim(&names.key(key), request).await.expect("the store answers"))
        }
        Operation::Renew { key, token: drawn } => {
            held(store.renew(&names.key(key), names.token(key, drawn), LONG).await)
        }
        Operation::Lapse { key, token: drawn } => {
            held(store.renew(&names.key(key), names.token(key, drawn), Duration::ZERO).await)
        }
        Operation::Complete { key, token: drawn, record } => {
            held(store.complete(&names.key(key), names.token(key, drawn), numbered(record), LONG).await)
        }
        Operation::Release { key, token: drawn } => held(store.release(&names.key(key), names.token(key, drawn)).await),
        Operation::Look { key } => {
            let entry = store.get(&names.key(key)).await.expect("the store answers");
            Answer::Expires(entry.map(|entry| entry.expires_in.is_some()))
        }
        Operation::Purge { key } => Answer::Purged(store.purge(&names.key(key)).await.expect("the store answers")),
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let (key, token) = (|| 0..KEYS, || 0..TOKENS);
    let after_crash = prop_oneof![Just(AfterCrash::Rerun), Just(AfterCrash::Reject)];
    prop_oneof![
        6 => (key(), token(), 0..2_u8, after_crash).prop_map(|(key, token, fingerprint, after_crash)| {
            Operation::Claim { key, token, fingerprint, after_crash }
        }),
        1 => (key(), token()).prop_map(|(key, token)| Operation::Renew { key, token }),
        3 => (key(), token()).prop_map(|(key, token)| Operation::Lapse { key, token }),
        2 => (key(), token(), 0..4_u8).prop_map(|(key, token, record)| Operation::Complete { key, token, record }),
        2 => (key(), token()).prop_map(|(key, token)| Operation::Release { key, token }),
        1 => key().prop_map(|key| Operation::Purge { key }),
        2 => key().prop_map(|key| Operation::Look { key }),
    ]
}

fn agrees_with_the_model(runtime: &tokio::runtime::Runtime, store: &impl StoreAdmin, cases: u32) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&proptest::collection::vec(operation(), 1..80), |operations| {
        let (mut names, mut model) = (Names::new(), Model::default());
        for (step, operation) in operations.iter().enumerate() {
            let answer = runtime.block_on(ask(store, &mut names, operation));
            if model.is_free(operation) || answer == Answer::Held(Held::Yes) {
                names.forget_what_was_released(operation);
            }
            prop_assert_eq!(answer, model.apply(operation), "step {}: {:?}", step, operation);
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

#[test]
fn the_memory_store_agrees_with_the_model() {
    let runtime = runtime();
    agrees_with_the_model(&runtime, &MemoryStore::new(), 512);
}

#[test]
fn the_sqlite_store_agrees_with_the_model() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().expect("a temporary folder"));
    let opened = runtime.block_on(SqliteStore::open(folder.path().join("idempotency.db")));
    agrees_with_the_model(&runtime, &opened.expect("the store opens"), 24);
}

#[test]
fn the_postgres_store_agrees_with_the_model() {
    let runtime = runtime();
    let store = runtime.block_on(stores::postgres(2));
    agrees_with_the_model(&runtime, &store, 24);
}

#[test]
fn the_redis_store_agrees_with_the_model() {
    let runtime = runtime();
    let store = runtime.block_on(async { RedisStore::connect(&RedisServer::shared().await.url()).await });
    agrees_with_the_model(&runtime, &store.expect("the store opens"), 48);
}

#[test]
fn the_redis_store_agrees_with_the_model_in_a_cluster() {
    let runtime = runtime();
    let store = runtime.block_on(async { RedisStore::cluster(RedisCluster::shared().await.urls()).open().await });
    agrees_with_the_model(&runtime, &store.expect("the store opens"), 24);
}
