//! Listings of a server with many keys and large responses.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use idempotent_runtime::store::{AfterCrash, ClaimRequest, EntryState, Held, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::testing::decoders::redis_value;
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::{Mode, Proxy, eventually};

fn record(body: Vec<u8>) -> Record {
    let fingerprint = Fingerprint::from_bytes([1; 32]);
    Record::new(StatusCode::CREATED, Vec::new(), RecordedBody::Whole(body.into()), fingerprint, SystemTime::UNIX_EPOCH)
}

/// Returns the first number in the line of `INFO` that begins with `name`, or 0 without such a line.
pub(super) async fn figure(server: &RedisServer, section: &str, name: &str) -> u64 {
    let info: String = server.command(&format!("INFO {section}")).await;
    let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let digits: String =
        line.chars().skip_while(|char| !char.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_default()
}

pub(super) async fn scans(server: &RedisServer) -> u64 {
    figure(server, "commandstats", "cmdstat_scan:calls").await
}

async fn bytes_sent(server: &RedisServer) -> u64 {
    figure(server, "stats", "total_net_output_bytes:").await
}

pub(super) async fn fill(server: &RedisServer, keys: usize) {
    let value = redis_value(Token::unique(), &record(b"paid".to_vec())).expect("a record is written");
    let mut connection = server.connection().await;
    for some in (0..keys).collect::<Vec<_>>().chunks(5000) {
        let mut all = redis::pipe();
        for number in some {
            let key = RecordKey::new("charges", None, &format!("k{number}"));
            let name = format!("idempotency:{}", key.as_str());
            all.cmd("SET").arg(name).arg(&value).arg("PX").arg(3_600_000).ignore();
        }
        all.exec_async(&mut connection).await.expect("the server takes them");
    }
}

#[tokio::test]
async fn page_reads_the_names_of_a_page() {
    let server = RedisServer::start(&[]).await;
    fill(&server, 20_000).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let (scans_before, bytes_before) = (scans(&server).await, bytes_sent(&server).await);
    let page = store.list(None, 50).await.expect("the store lists");
    assert_eq!(page.entries.len(), 50);
    assert!(scans(&server).await - scans_before <= 5);
    assert!(bytes_sent(&server).await - bytes_before < 50_000);

    let (mut cursor, mut seen) = (None, HashSet::new());
    loop {
        let page = store.list(cursor, 500).await.expect("the store lists");
        assert!(page.entries.len() <= 500 && page.damaged.is_empty());
        for entry in page.entries {
            assert!(seen.insert(entry.key), "each one once");
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 20_000);
    assert!(scans(&server).await - scans_before < 200, "not all of it for each page");
}

#[tokio::test]
async fn listing_and_counting_read_no_bodies() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let (number, size) = (20, 1_000_000);
    for number in 0..number {
        let key = RecordKey::new("charges", None, &format!("k{number}"));
        let claim = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
            .with_lease(Duration::from_mins(1))
            .with_ttl(Duration::from_mins(2))
            .with_after_crash(AfterCrash::Reject);
        let _ = store.claim(&key, claim).await.expect("the store claims");
        let held = store.complete(&key, claim.token, record(vec![b'x'; size]), claim.ttl).await;
        assert_eq!(held.expect("the store records"), Held::Yes);
        // In a Cluster, the name stays in this set if the process crashes after it has written the record.
        let _: u64 = server.command(&format!("SADD idempotency:unknown_outcomes idempotency:{}", key.as_str())).await;
    }
    let before = bytes_sent(&server).await;
    let page = store.list(None, 100).await.expect("the store lists");
    assert_eq!(page.entries.len(), number);
    for entry in page.entries {
        let EntryState::Completed { status, body_bytes, recorded_at } = entry.state else { panic!("{entry:?}") };
        assert_eq!((status, body_bytes, recorded_at), (StatusCode::CREATED, Some(size as u64), SystemTime::UNIX_EPOCH));
        assert_eq!(entry.fingerprint, Fingerprint::from_bytes([1; 32]));
    }
    assert_eq!(store.unknown_outcomes().await.expect("the store counts").len(), 0);
    assert!(bytes_sent(&server).await - before < 100_000);
}

/// A listing that blocks its own connection delays no claim.
#[tokio::test]
async fn listing_has_a_connection_of_its_own() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let clients = async || figure(&server, "clients", "connected_clients:").await;
    let before = clients().await;
    store.list(None, 10).await.expect("the store lists");
    assert_eq!(clients().await, before + 1);
    store.list(None, 10).await.expect("the store lists");
    store.unknown_outcomes().await.expect("the store counts");
    assert_eq!(clients().await, before + 1);
}

#[tokio::test]
async fn cursor_of_another_store_is_an_error() {
    let server = RedisServer::shared().await;
    let cluster = RedisStore::cluster(RedisCluster::shared().await.urls()).open().await.expect("the store opens");
    let single = RedisStore::connect(&server.url()).await.expect("the store opens");
    for cursor in ["charges//k", "", "x 1", "0 x", "0 1\nk"] {
        let cursor = idempotent_runtime::store::Cursor::new(cursor);
        assert!(cluster.list(Some(cursor.clone()), 10).await.is_err(), "{cursor:?}");
        assert!(single.list(Some(cursor), 10).await.is_err());
    }
}

/// Each call is slow, and a page needs many calls.
#[tokio::test]
async fn page_ends_after_half_a_second_and_goes_on() {
    let server = RedisServer::start(&[]).await;
    fill(&server, 2_500).await;
    let proxy = Proxy::to(server.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", proxy.address())).await.expect("the store opens");
    proxy.set(Mode::Delays(Duration::from_millis(50)));
    let page = store.list(None, 2_500).await.expect("the store lists");
    // A hundred entries take a round trip of 100 ms.
    assert!((1..=500).contains(&page.entries.len()), "{}", page.entries.len());
    proxy.set(Mode::Passes);
    let (mut cursor, mut seen) = (page.next, HashSet::new());
    seen.extend(page.entries.into_iter().map(|entry| entry.key));
    while cursor.is_some() {
        let page = store.list(cursor, 2_500).await.expect("the store lists");
        for entry in page.entries {
            assert!(seen.insert(entry.key), "each one once");
        }
        cursor = page.next;
    }
    assert_eq!(seen.len(), 2_500);
}

/// A page does not go through all names of other applications.
#[tokio::test]
async fn page_among_many_names_of_others_ends_and_goes_on() {
    let server = RedisServer::start(&["--appendonly no"]).await;
    let others =
        redis::Script::new("for number = ARGV[1], ARGV[1] + 1999 do redis.call('SET', 'other:' .. number, '') end");
    let connection = server.connection().await;
    for first in (0..260_000).step_by(2_000) {
        // On a busy machine, the answer may be late. Then the same call is sent again.
        let make = async || others.arg(first).invoke_async::<()>(&mut connection.clone()).await;
        eventually(make, Result::is_ok).await.expect("awaited");
    }
    fill(&server, 3).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let (mut cursor, mut seen, mut pages, mut most) = (None, 0, 0, 0);
    loop {
        let before = scans(&server).await;
        let page = store.list(cursor, 10).await.expect("the store lists");
        most = most.max(scans(&server).await - before);
        (seen, pages, cursor) = (seen + page.entries.len(), pages + 1, page.next);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, 3);
    assert!(pages > 1 && most <= 200, "{pages} pages of at most {most} calls");
}
