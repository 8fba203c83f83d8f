//! TLS to Redis: which certificates the store trusts, and to which servers it sends nothing without TLS.

use std::pin::pin;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{RedisOpenError, RedisStore, Store, StoreAdmin};
use idempotent_tests::fake_redis::{FakeRedis, bulk};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::acquire;
use idempotent_tests::{Certificates, eventually};

fn url(server: &RedisServer, host: &str, parameters: &str) -> String {
    format!("rediss://{host}:{}/?{parameters}", server.tls_port())
}

/// Returns why the store does not open, with all causes.
async fn connect_error(url: &str) -> String {
    format!("{:?}", RedisStore::connect(url).await.expect_err(url))
}

#[tokio::test]
async fn tls_store_claims_and_wakes_its_waiters() {
    let certificates = Certificates::new();
    let server = RedisServer::start_with_tls(&certificates, &["--tls-auth-clients no"]).await;
    for host in ["localhost", "127.0.0.1"] {
        let url = url(&server, host, &format!("cacert={}", certificates.path("ca.pem")));
        let store = RedisStore::connect(&url).await.expect("the certificate is believed");
        let key = RecordKey::new("tls", None, host);
        acquire(&store, &key).await;
        let mut heard = pin!(store.changed(&key));
        eventually(async || futures_util::poll!(heard.as_mut()).is_ready(), |&is_heard| is_heard).await;
    }
}

#[tokio::test]
async fn untrusted_redis_certificate_is_rejected() {
    let certificates = Certificates::new();
    let server = RedisServer::start_with_tls(&certificates, &["--tls-auth-clients no"]).await;
    let (ca, other) = (certificates.path("ca.pem"), certificates.path("other-ca.pem"));
    let unknown = connect_error(&url(&server, "localhost", &format!("cacert={other}"))).await;
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");
    let of_no_system = connect_error(&url(&server, "localhost", "")).await;
    assert!(of_no_system.contains("UnknownIssuer"), "{of_no_system}");

    let own = format!("cacert={ca}");
    let _: String = server.command(&format!("CONFIG SET tls-cert-file {}", certificates.path("named.pem"))).await;
    let misnamed = connect_error(&url(&server, "127.0.0.1", &own)).await;
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
    let _: String = server.command(&format!("CONFIG SET tls-cert-file {}", certificates.path("expired.pem"))).await;
    let expired = connect_error(&url(&server, "localhost", &own)).await;
    assert!(expired.contains("expired"), "{expired}");
}

#[tokio::test]
async fn client_without_its_certificate_is_rejected() {
    let certificates = Certificates::new();
    let server = RedisServer::start_with_tls(&certificates, &[]).await;
    let parameters = format!("cacert={}", certificates.path("ca.pem"));
    let missing = RedisStore::connect(&url(&server, "localhost", &parameters)).await.expect_err("it has none");
    assert!(matches!(missing, RedisOpenError::Unreachable(_)), "{missing:?}");
    let (certificate, key) = (certificates.path("client.pem"), certificates.path("client.key"));
    let parameters = format!("{parameters}&cert={certificate}&key={key}");
    RedisStore::connect(&url(&server, "localhost", &parameters)).await.expect("it has one");

    let nowhere = url(&server, "localhost", &format!("cert=/nowhere.pem&key={key}"));
    assert!(connect_error(&nowhere).await.contains("`/nowhere.pem` of the parameter `cert`"));
    let swapped = url(&server, "localhost", &format!("cert={key}&key={key}"));
    assert!(connect_error(&swapped).await.contains("no certificate in PEM"));
}

#[tokio::test]
async fn cluster_is_reached_by_tls() {
    let certificates = Certificates::new();
    let server = RedisServer::start_cluster_with_tls(&certificates).await;
    let open = async |authority| {
        let url = url(&server, "localhost", &format!("cacert={}", certificates.path(authority)));
        RedisStore::cluster([url]).open().await
    };
    let store = open("ca.pem").await.expect("the certificate is believed");
    let key = RecordKey::new("tls", None, "cluster");
    acquire(&store, &key).await;
    assert_eq!(store.list(None, 10).await.expect("it lists").entries.len(), 1);
    assert!(store.purge(&key).await.expect("it purges"));
    let unknown = format!("{:?}", open("other-ca.pem").await.expect_err("it is unknown"));
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");
}

/// The C library reads `0x7f000001` as `127.0.0.1`. This library takes it for the name of another machine.
#[tokio::test]
async fn nothing_in_clear_leaves_for_redis_unless_written() {
    let server = RedisServer::start(&[]).await;
    let elsewhere = server.url().replace("127.0.0.1", "0x7f000001").replace("redis://", "redis://:s3cret@");
    let _: String = server.command("CONFIG RESETSTAT").await;
    for store in [RedisStore::builder(&elsewhere), RedisStore::cluster([&elsewhere])] {
        let error = store.open().await.expect_err("it would be in clear");
        assert!(matches!(&error, RedisOpenError::InClear { host, .. } if host == "0x7f000001"), "{error:?}");
        let told = error.to_string();
        assert!(told.contains("`rediss://`") && told.contains("`?tls=disable`") && !told.contains("s3cret"), "{told}");
    }
    let statistics: String = server.command("INFO stats").await;
    assert!(
        statistics.contains("total_connections_received:0\r\n") || statistics.contains("received:1\r\n"),
        "{statistics}"
    );
    let _: String = server.command("ACL SETUSER default >s3cret").await;
    RedisStore::connect(&format!("{elsewhere}?tls=disable")).await.expect("it is written");
}

/// The loopback address in a notation that this library takes for the name of another machine.
const ELSEWHERE: &str = "0x7f000001";

#[tokio::test]
async fn redis_cluster_names_a_server_elsewhere_and_it_hears_nothing() {
    let node = FakeRedis::start(|_| "+OK\r\n".to_owned()).await;
    let named = format!("*3\r\n{}:{}\r\n{}", bulk(ELSEWHERE), node.port(), bulk(&"a".repeat(40)));
    // The other server can be named as a master or as a replica.
    for replica in [false, true] {
        let named = named.clone();
        let here = format!("*3\r\n{}:1\r\n{}", bulk("127.0.0.1"), bulk(&"b".repeat(40)));
        let servers = if replica {
            format!("*4\r\n:0\r\n:16383\r\n{here}{named}")
        } else {
            format!("*3\r\n:0\r\n:16383\r\n{named}")
        };
        let first = FakeRedis::start(move |words| match words {
            [cluster, slots] if cluster == "CLUSTER" && slots == "SLOTS" => format!("*1\r\n{servers}"),
            _ => "+OK\r\n".to_owned(),
        })
        .await;
        let url = format!("redis://:s3cret@127.0.0.1:{}/", first.port());
        let error = RedisStore::cluster([url]).open().await.expect_err("it would be in clear");
        assert!(matches!(&error, RedisOpenError::InClear { host, .. } if host == ELSEWHERE), "{error:?}");
        assert!(first.heard().contains("s3cret"));
        assert_eq!(node.heard(), "");
    }
}

#[tokio::test]
async fn redis_master_that_a_sentinel_names_elsewhere_hears_nothing() {
    let master = FakeRedis::start(|_| "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_owned()).await;
    let port = master.port().to_string();
    let sentinel = FakeRedis::start(move |words| match words.first().map(String::as_str) {
        Some("ROLE") => format!("*2\r\n{}*1\r\n{}", bulk("sentinel"), bulk("shop")),
        Some("SENTINEL") => {
            let fields = ["name", "shop", "ip", ELSEWHERE, "port", &port, "flags", "master"];
            format!("*1\r\n*8\r\n{}", fields.map(bulk).concat())
        }
        _ => "+OK\r\n".to_owned(),
    })
    .await;
    let url = format!("redis+sentinel://:s3cret@127.0.0.1:{}/shop/0", sentinel.port());
    let rejected = connect_error(&url).await;
    assert!(rejected.contains(ELSEWHERE) && rejected.contains("`?tls=disable`"), "{rejected}");
    assert_eq!(master.heard(), "");
}
