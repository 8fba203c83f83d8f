//! The sets with the names of claims: which names enter them, which leave them, and how many commands that takes.

use std::time::Duration;

use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::eventually;
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::stores::{prefix, record};

use crate::redis::listing::{figure, fill, scans};

fn request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_mins(2))
}

async fn keys_of_claims(store: &RedisStore) -> Vec<String> {
    let page = store.claims(None, 1000).await.expect("it lists").expect("there is an index");
    assert!(page.damaged.is_empty() && page.next.is_none(), "{page:?}");
    let mut keys: Vec<_> = page.entries.iter().map(|entry| entry.key.key().into_owned()).collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn claims_among_20_000_records_are_found_without_a_scan() {
    let server = RedisServer::start(&[]).await;
    fill(&server, 20_000).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let before = scans(&server).await;
    for (key, after_crash, lapses) in [
        ("runs", AfterCrash::Rerun, false),
        ("past-lease", AfterCrash::Rerun, true),
        ("unknown", AfterCrash::Reject, true),
    ] {
        let (key, request) = (RecordKey::new("charges", None, key), request().with_after_crash(after_crash));
        let _ = store.claim(&key, request).await.expect("it claims");
        if lapses {
            let _ = store.renew(&key, request.token, Duration::ZERO).await.expect("it ends the lease");
        }
    }
    assert_eq!(keys_of_claims(&store).await, ["past-lease", "runs", "unknown"]);
    assert_eq!(scans(&server).await, before);
}

/// Returns how often the command `name` was called since the last reset.
async fn calls(server: &RedisServer, name: &str) -> u64 {
    figure(server, "commandstats", &format!("cmdstat_{name}:calls=")).await
}

#[tokio::test]
async fn first_execution_enters_a_name_and_a_replay_none() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let (key, warm) = (RecordKey::new("charges", None, "k"), RecordKey::new("charges", None, "warm"));
    // Afterwards, the server has the scripts.
    let first = request();
    let _ = store.claim(&warm, first).await.expect("it claims");
    let _ = store.complete(&warm, first.token, record("paid"), first.ttl).await.expect("it records");
    let () = server.command("CONFIG RESETSTAT").await;
    let first = request();
    assert_eq!(store.claim(&key, first).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.complete(&key, first.token, record("paid"), first.ttl).await.expect("it records"), Held::Yes);
    for _ in 0..3 {
        assert!(matches!(store.claim(&key, request()).await, Ok(Claim::Completed(_))));
    }
    let counted = [calls(&server, "set").await, calls(&server, "zadd").await, calls(&server, "zrem").await];
    // One `SET` for each of four claims, and one in the script that records. Before version 7, a script makes a claim.
    let (sets, scripts) = if server.version().await >= 7 { (5, 1) } else { (2, 5) };
    assert_eq!(counted, [sets, 1, 1], "SET, ZADD, ZREM");
    assert_eq!(calls(&server, "evalsha").await, scripts);
    assert_eq!(server.command::<u64>("EXISTS idempotency:claims idempotency:unknown_outcomes").await, 0);
}

#[tokio::test]
async fn names_of_claims_that_expired_are_swept() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let key = |name: &str| RecordKey::new("charges", None, name);
    for number in 0..10 {
        let short = request().with_lease(Duration::from_millis(50)).with_ttl(Duration::from_millis(100));
        let _ = store.claim(&key(&number.to_string()), short).await.expect("it claims");
    }
    let _ = store.claim(&key("runs"), request()).await.expect("it claims");
    let _: u64 = server.command("ZADD idempotency:claims 1 idempotency:charges//runs").await;
    eventually(async || server.command::<u64>("DBSIZE").await, |&names| names == 2).await;
    let names = async || {
        store.unknown_outcomes().await.expect("it counts");
        server.command::<Vec<String>>("ZRANGE idempotency:claims 0 -1").await
    };
    eventually(names, |names| names == &["idempotency:charges//runs"]).await;
    let expires: f64 = server.command("ZSCORE idempotency:claims idempotency:charges//runs").await;
    assert!(expires > 1e12, "it was looked at, and gets its time again");
}

#[tokio::test]
async fn names_of_claims_that_ended_unseen_leave_a_listing() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let _ = store.claim(&RecordKey::new("charges", None, "runs"), request()).await.expect("it claims");
    let _ = keys_of_claims(&store).await;
    // Such names are left if a process of another version, which does not know the set, ends the claims.
    for (name, value) in [("gone", None), ("other", Some("x"))] {
        let _: u64 = server.command(&format!("ZADD idempotency:claims 9e15 idempotency:charges//{name}")).await;
        if let Some(value) = value {
            let () = server.command(&format!("SET idempotency:charges//{name} {value}")).await;
        }
    }
    assert_eq!(keys_of_claims(&store).await, ["runs"]);
    assert_eq!(server.command::<u64>("ZCARD idempotency:claims").await, 1);
}

/// No slot has all names. The end of a claim removes its name from the set in its slot.
#[tokio::test]
async fn names_of_a_cluster_are_spread_and_removed() {
    let cluster = RedisCluster::shared().await;
    let prefix = prefix();
    let store = RedisStore::cluster(cluster.urls()).prefix(&prefix).open().await.expect("the store opens");
    let keys: Vec<_> = (0..64).map(|number| RecordKey::new("charges", None, &format!("{number:02}"))).collect();
    let sets = async || {
        let mut sets = 0;
        for master in cluster.masters() {
            sets += master.command::<Vec<String>>(&format!("KEYS {prefix}*claims:*")).await.len();
        }
        sets
    };
    let claim = request();
    for key in &keys {
        assert_eq!(store.claim(key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    }
    let listed = async || keys_of_claims(&store).await;
    eventually(listed, |found| found.iter().eq(keys.iter().map(|key| key.key()).collect::<Vec<_>>().iter())).await;
    assert!(sets().await > 4);
    for (number, key) in keys.iter().enumerate() {
        if number % 2 == 0 {
            let _ = store.complete(key, claim.token, record("paid"), claim.ttl).await.expect("it records");
        } else {
            let _ = store.release(key, claim.token).await.expect("it gives back");
        }
    }
    eventually(sets, |&sets| sets == 0).await;
    for key in &keys {
        let _ = store.purge(key).await.expect("it purges");
    }
}
