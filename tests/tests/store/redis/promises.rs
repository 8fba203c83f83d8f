//! Promises of the Redis store beyond the contract of every store.

use std::time::Duration;

use futures_util::StreamExt;
use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{
    AfterCrash, Claim, EntryState, Held, RedisOpenError, RedisStore, Resolution, Resolved, Store, StoreAdmin,
    StoreError,
};
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::stores::{claim_request, record};
use idempotent_tests::{Answer, PATIENCE, Runs, eventually};
use serde_json::{Value, json};

use crate::charges::{assert_all_waiters_get_one_response, send, serve};

async fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::connect(&server.url()).await.expect("the store opens")
}

#[tokio::test]
async fn a_value_can_be_read_by_a_person() {
    let server = RedisServer::start(&[]).await;
    let runs = Runs::held();
    let app = serve(connect(&server).await, &runs).await;
    let name = format!("idempotency:{}", RecordKey::new("charges", None, "8e03978e").as_str());
    let (first, ()) = tokio::join!(send(&app, "8e03978e"), async {
        runs.until_started(1).await;
        let claim: Value = serde_json::from_str(&server.command::<String>(&format!("GET {name}")).await).expect("JSON");
        assert_eq!((&claim["state"], &claim["attempt"]), (&json!("claimed"), &json!(1)));
        runs.let_finish(1);
    });
    assert_eq!(first.text(), "charge 1");
    let value: Value = serde_json::from_str(&server.command::<String>(&format!("GET {name}")).await).expect("JSON");
    assert_eq!(value["state"], "completed");
    assert_eq!((&value["record"]["status"], &value["record"]["body"]), (&json!(200), &json!("Y2hhcmdlIDE=")));
    assert_eq!(value["record"]["headers"][1], json!(["x-charge", "1"]));
    let left: i64 = server.command(&format!("TTL {name}")).await;
    assert!((86_000..=86_400).contains(&left), "the key's own expiry is the time to live: {left}");
}

#[tokio::test]
async fn a_replay_is_one_round_trip_and_a_first_execution_two() {
    let server = RedisServer::start(&[]).await;
    let app = serve(connect(&server).await, &Runs::free()).await;
    // Afterwards, the server has the scripts, as it has for all requests but the first ones after its start.
    send(&app, "warm").await;
    send(&app, "warm").await;
    let commands = async || {
        let stats: String = server.command("INFO commandstats").await;
        let calls = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
        let of = |command: &str| -> u64 {
            stats.lines().filter(|line| line.starts_with(&format!("cmdstat_{command}"))).filter_map(calls).sum()
        };
        // Redis also counts the commands that scripts call, but only commands that arrived count here. The script that
        // completes calls `SET` once and publishes once. The script that claims, which is used before version 7, calls
        // `SET` once and `EXISTS` once.
        of("eval") + of("script") + of("set:") - of("publish:") - of("exists:")
    };
    let before = commands().await;
    assert!(!send(&app, "k").await.is_replay());
    let after_first = commands().await;
    assert!(send(&app, "k").await.is_replay());
    assert_eq!((after_first - before, commands().await - after_first), (2, 1));
}

#[tokio::test]
async fn scripts_that_the_server_has_forgotten_are_sent_again() {
    let server = RedisServer::start(&[]).await;
    let app = serve(connect(&server).await, &Runs::free()).await;
    for key in ["k1", "k2"] {
        let _: String = server.command("SCRIPT FLUSH").await;
        assert!(!send(&app, key).await.is_replay());
        let _: String = server.command("SCRIPT FLUSH").await;
        assert!(send(&app, key).await.is_replay());
    }
}

#[tokio::test]
async fn a_server_that_evicts_is_rejected_unless_that_is_allowed() {
    let server = RedisServer::start(&["--maxmemory 50mb", "--maxmemory-policy allkeys-lru"]).await;
    let error = RedisStore::connect(&server.url()).await.expect_err("it evicts");
    assert!(matches!(&error, RedisOpenError::Evicts { policy, .. } if policy == "allkeys-lru"), "{error}");
    for part in ["allkeys-lru", "maxmemory-policy noeviction", ".allow_eviction()"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    RedisStore::builder(&server.url()).allow_eviction().open().await.expect("it is allowed");
}

#[tokio::test]
async fn malformed_url_and_absent_server_are_told_apart() {
    assert!(matches!(RedisStore::connect("http://localhost").await, Err(RedisOpenError::Url(_))));
    assert!(matches!(RedisStore::connect("redis://127.0.0.1:1/").await, Err(RedisOpenError::Unreachable(_))));
    let printed =
        format!("{:?}", RedisStore::connect("redis://127.0.0.1:1/").await.expect_err("nothing listens there"));
    assert_eq!(printed.matches("Connection refused").count(), 1, "{printed}");
}

#[tokio::test]
async fn full_server_replays_and_takes_records_of_granted_claims() {
    let server = RedisServer::start(&[]).await;
    let (runs, store) = (Runs::held(), connect(&server).await);
    let app = serve(store.clone(), &runs).await;
    runs.let_finish(1);
    assert_eq!(send(&app, "old").await.text(), "charge 1");
    let (granted, ()) = tokio::join!(send(&app, "granted"), async {
        runs.until_started(2).await;
        let _: String = server.command("CONFIG SET maxmemory 1").await;
        assert_eq!(send(&app, "new").await.rejection(), "store_unavailable");
        let error =
            store.claim(&RecordKey::new("charges", None, "new"), claim_request()).await.expect_err("it is full");
        assert!(matches!(error, StoreError::Full), "{error}");
        runs.let_finish(1);
    });
    assert_eq!(granted.text(), "charge 2");
    if server.version().await < 7 {
        // Before version 7, a full server does not take a record either, until there is room.
        assert_eq!(send(&app, "granted").await.rejection(), "in_flight");
        let _: String = server.command("CONFIG SET maxmemory 0").await;
        eventually(async || send(&app, "granted").await, Answer::is_replay).await;
    }
    for (key, charge) in [("old", "charge 1"), ("granted", "charge 2")] {
        let replay = send(&app, key).await;
        assert_eq!((replay.text(), replay.is_replay()), (charge, true), "{key}");
    }
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_damaged_value_is_rejected_and_never_run_again() {
    let server = RedisServer::start(&[]).await;
    let (runs, store) = (Runs::free(), connect(&server).await);
    let app = serve(store.clone(), &runs).await;
    let damages = [
        "nothing",
        "{}",
        r#"{"state":"odd"}"#,
        r#"{"state":"claimed"}"#,
        r#"{"state":"claimed","token":1}"#,
        r#"{"state":"claimed","token":"x","fingerprint":"xyz","attempt":1,"lease":1,"ttl":1000}"#,
        r#"{"state":"completed","token":"x"}"#,
        r#"{"state":"completed","token":"x","record":{"version":2}}"#,
    ];
    for (number, damage) in damages.iter().enumerate() {
        let key = format!("k{number}");
        send(&app, &key).await;
        let name = format!("idempotency:{}", RecordKey::new("charges", None, &key).as_str());
        let _: String = server.command(&format!("SET {name} {damage} KEEPTTL")).await;
        let answer = send(&app, &key).await;
        assert!(["store_unavailable", "key_reused"].contains(&answer.rejection().as_str()), "{damage}: {answer:?}");
    }
    let name = format!("idempotency:{}", RecordKey::new("charges", None, "list").as_str());
    let _: u32 = server.command(&format!("LPUSH {name} x")).await;
    assert_eq!(send(&app, "list").await.rejection(), "store_unavailable");
    assert_eq!(runs.started(), damages.len());
    let error = store.get(&RecordKey::new("charges", None, "list")).await.expect_err("it is no string");
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
}

#[tokio::test]
async fn a_waiter_elsewhere_is_woken_by_the_message() {
    let (server, cluster) = (RedisServer::shared().await, RedisCluster::shared().await);
    let in_cluster = async || RedisStore::cluster(cluster.urls()).open().await.expect("the store opens");
    let pairs = [(connect(server).await, connect(server).await), (in_cluster().await, in_cluster().await)];
    for (here, there) in pairs {
        for ends in ["completes", "releases"] {
            // A store gets no message before it has subscribed. When it has subscribed, it wakes every waiter once.
            let first = RecordKey::new("wakes", Some("first"), ends);
            let listens = async || {
                loop {
                    let claim = claim_request();
                    let _ = here.claim(&first, claim).await.expect("the store claims");
                    let mut heard = std::pin::pin!(there.changed(&first));
                    assert!(futures_util::poll!(heard.as_mut()).is_pending());
                    let _ = here.release(&first, claim.token).await.expect("the store answers");
                    if tokio::time::timeout(Duration::from_millis(200), heard).await.is_ok() {
                        return;
                    }
                }
            };
            // The first success may be that wake-up, so there must be a second one.
            for _ in 0..2 {
                tokio::time::timeout(PATIENCE, listens()).await.expect("it listens");
            }
            let (key, claim) = (RecordKey::new("wakes", None, ends), claim_request());
            let _ = here.claim(&key, claim).await.expect("the store claims");
            let mut changed = std::pin::pin!(there.changed(&key));
            assert!(futures_util::poll!(changed.as_mut()).is_pending());
            let held = match ends {
                "completes" => here.complete(&key, claim.token, record(b"paid"), claim.ttl).await,
                _ => here.release(&key, claim.token).await,
            };
            assert_eq!(held.expect("the store answers"), Held::Yes);
            tokio::time::timeout(PATIENCE, changed).await.expect("the waiter is woken");
        }
    }
}

#[tokio::test]
async fn server_that_cannot_save_is_full_and_not_unreachable() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    let client = redis::Client::open(server.url()).expect("the URL is well-formed");
    let mut operator = client.get_multiplexed_async_connection().await.expect("the server answers");
    let save = redis::cmd("CONFIG").arg(&["SET", "save", "3600 1"]).query_async::<()>(&mut operator).await;
    save.expect("it is set");
    std::fs::remove_dir_all(server.folder()).expect("the folder can go");
    let () = server.command("BGSAVE").await;
    let failed = |info: &String| info.contains("rdb_last_bgsave_status:err");
    eventually(async || server.command::<String>("INFO persistence").await, failed).await;
    let key = RecordKey::new("charges", None, "k");
    let error = store.claim(&key, claim_request()).await.expect_err("the server takes no writes");
    assert!(matches!(error, StoreError::Full), "{error:?}");
}

/// The client of a Cluster repeats a call by itself, so a full server may have made the claim in an earlier try.
#[tokio::test]
async fn claim_made_before_its_server_was_full_is_busy() {
    let server = RedisServer::start_cluster_of_one().await;
    let store = RedisStore::cluster([server.url()]).open().await.expect("the store opens");
    let (key, claim) = (RecordKey::new("charges", None, "k"), claim_request().with_after_crash(AfterCrash::Reject));
    assert_eq!(store.claim(&key, claim).await.expect("the store claims"), Claim::Acquired { attempt: 1 });
    let () = server.command("CONFIG SET maxmemory 1").await;
    let error = store.claim(&key, claim).await.expect_err("the server is full");
    assert!(matches!(error, StoreError::Unavailable(_)) && !error.is_unreachable(), "{error:?}");
    let (other, request) = (RecordKey::new("charges", None, "other"), claim_request());
    let other = store.claim(&other, request).await.expect_err("the server is full");
    assert!(matches!(other, StoreError::Full), "{other:?}");
}

/// A channel belongs to no database and no key pattern, so users of other applications may subscribe to it.
#[tokio::test]
async fn messages_of_ended_claims_show_no_key() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::builder(&server.url()).prefix("shop:").open().await.expect("the store opens");
    let client = redis::Client::open(format!("{}1", server.url())).expect("the URL is well-formed");
    let mut other = client.get_async_pubsub().await.expect("the server answers");
    other.psubscribe("*").await.expect("it may");
    let mut heard = std::pin::pin!(other.on_message());
    let secret = RecordKey::new("charges", Some("alice"), "planted-key");
    let mut messages = Vec::new();
    for way in ["completes", "releases", "is resolved"] {
        let claim = claim_request();
        let _ = store.claim(&secret, claim).await.expect("the store claims");
        match way {
            "completes" => {
                let _ = store.complete(&secret, claim.token, record(b"paid"), claim.ttl).await.expect("it records");
                assert!(store.purge(&secret).await.expect("it purges"));
            }
            "releases" => assert_eq!(store.release(&secret, claim.token).await.expect("it answers"), Held::Yes),
            _ => {
                let _ = store.renew(&secret, claim.token, Duration::ZERO).await.expect("it answers");
                let resolved = store.resolve(&secret, claim.token, Resolution::NotExecuted).await;
                assert_eq!(resolved.expect("it answers"), Resolved::Yes);
            }
        }
        let message = tokio::time::timeout(PATIENCE, heard.next()).await.expect("it is told").expect("a message");
        messages.push((message.get_channel_name().to_owned(), message.get_payload::<String>().expect("text")));
    }
    messages.dedup();
    let [(channel, digest)] = messages.as_slice() else { panic!("one key, one message: {messages:?}") };
    assert_eq!((channel.as_str(), digest.len()), ("shop:ended", 64));
    assert!(digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
}

#[tokio::test]
async fn waiters_of_two_processes_get_one_response() {
    let server = RedisServer::start(&[]).await;
    let runs = Runs::held();
    let (first, second) = (serve(connect(&server).await, &runs).await, serve(connect(&server).await, &runs).await);
    assert_all_waiters_get_one_response(&[first, second], &runs).await;
}

#[tokio::test]
async fn a_write_that_too_few_replicas_have_is_rejected() {
    let master = RedisServer::start(&[]).await;
    let replica = RedisServer::start(&[&format!("--replicaof {}", master.address().replace(':', " "))]).await;
    eventually(
        async || replica.command::<String>("INFO replication").await,
        |info| info.contains("master_link_status:up"),
    )
    .await;
    let wait = |replicas, timeout| RedisStore::builder(&master.url()).wait_replicas(replicas, timeout).open();
    let store = wait(1, Duration::from_secs(10)).await.expect("the store opens");
    let (key, claim) = (RecordKey::new("charges", None, "k"), claim_request());
    assert_eq!(store.claim(&key, claim).await.expect("a replica has it"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.complete(&key, claim.token, record(b"paid"), claim.ttl).await.expect("it has it"), Held::Yes);
    // The replica already has the record, so the test does not wait for it.
    let copy: String = replica.command(&format!("GET idempotency:{}", key.as_str())).await;
    assert!(copy.contains("completed"), "{copy}");

    replica.signal("STOP");
    let impatient = wait(1, Duration::from_millis(100)).await.expect("the store opens");
    // The second call uses another connection. It must not assume that the replica has the write of the first call.
    let (other, claim) = (RecordKey::new("charges", None, "other"), claim_request());
    for _ in 0..2 {
        let error = impatient.claim(&other, claim).await.expect_err("none has it");
        let source = std::error::Error::source(&error).expect("a reason").to_string();
        assert!(source.contains("only 0 of the wanted 1 replicas"), "{source}");
    }
    replica.signal("CONT");
}

#[tokio::test]
async fn a_user_who_may_not_publish_claims_and_records_all_the_same() {
    let server = RedisServer::start(&[]).await;
    let () = server.command("ACL SETUSER app on >secret ~* +@all resetchannels").await;
    let url = server.url().replace("redis://", "redis://app:secret@");
    let store = RedisStore::connect(&url).await.expect("the store opens");
    let (key, claim) = (RecordKey::new("charges", None, "k"), claim_request());
    assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.release(&key, claim.token).await.expect("it releases"), Held::Yes);
    assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.complete(&key, claim.token, record(b"paid"), claim.ttl).await.expect("it records"), Held::Yes);
    assert!(matches!(store.claim(&key, claim_request()).await, Ok(Claim::Completed(_))));
}

#[tokio::test]
async fn wait_replicas_needs_connections_of_its_own() {
    let cluster = RedisStore::cluster(RedisCluster::shared().await.urls()).wait_replicas(1, PATIENCE).open().await;
    assert!(matches!(cluster, Err(RedisOpenError::CannotWait)));
}

#[tokio::test]
async fn the_applications_own_connection_and_prefix_will_do() {
    let server = RedisServer::start(&[]).await;
    let client = redis::Client::open(server.url()).expect("the URL is well-formed");
    let manager = client.get_connection_manager().await.expect("the server answers");
    let key = RecordKey::new("charges", None, "k");
    for prefix in ["ab:", "a*:"] {
        let store = RedisStore::with_connection(manager.clone()).prefix(prefix).open().await.expect("the store opens");
        assert_eq!(store.claim(&key, claim_request()).await.expect("the store claims"), Claim::Acquired { attempt: 1 });
        let listed = store.list(None, 10).await.expect("the store lists").entries;
        assert_eq!(listed.len(), 1, "{prefix}: {listed:?}");
        assert!(matches!(listed[0].state, EntryState::Claimed { attempt: 1, .. }));
    }
}

#[tokio::test]
async fn in_a_cluster_keys_lie_on_all_masters_and_are_all_listed() {
    let cluster = RedisCluster::shared().await;
    let store = RedisStore::cluster(cluster.urls()).prefix("spread:").open().await.expect("the store opens");
    for number in 0..60 {
        let key = RecordKey::new("charges", None, &format!("k{number}"));
        let _ = store.claim(&key, claim_request()).await.expect("the store claims");
    }
    for master in cluster.masters() {
        assert!(master.command::<u64>("DBSIZE").await > 0);
    }
    let (mut listed, mut cursor) = (0, None);
    loop {
        let page = store.list(cursor, 7).await.expect("the store lists");
        listed += page.entries.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed, 60);
}

/// For up to a millisecond before a key expires, the server says that 0 ms are left.
#[tokio::test]
async fn claim_repeated_in_its_last_millisecond_still_expires() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    let short = Duration::from_millis(3);
    for number in 0..200 {
        let key = RecordKey::new("charges", None, &format!("k{number}"));
        let request = claim_request().with_lease(short).with_ttl(short);
        for _ in 0..25 {
            let _ = store.claim(&key, request).await.expect("the store claims");
        }
    }
    // Only the set with the names of the claims is left.
    eventually(async || server.command::<u64>("DBSIZE").await, |left| *left <= 1).await;
    assert_eq!(server.command::<String>("RANDOMKEY").await, "idempotency:claims");
}
