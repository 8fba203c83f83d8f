//! Tests of servers with TLS, and of Sentinels.

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{PostgresStore, RedisStore};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sentinel::Sentinel;
use idempotent_tests::sqlite::acquire;
use idempotent_tests::{Certificates, eventually};

use crate::shop::{Said, idempotent};

async fn list(url: &str) -> Said {
    idempotent(&["--store", url, "list"]).await
}

async fn assert_listed(url: &str) {
    let said = list(url).await;
    assert!(said.code == Some(0) && said.out.starts_with("1 in_flight\n"), "{url}: {said:?}");
}

async fn assert_unknown(url: &str, parameter: &str) {
    let said = list(url).await;
    assert!(said.code == Some(3) && said.error.contains("UnknownIssuer"), "{url}: {said:?}");
    assert!(said.error.contains(&format!("name the authority that signed it with `{parameter}=PATH`")), "{said:?}");
}

#[tokio::test]
async fn redis_with_tls_and_sentinels_is_listed() {
    let certificates = Certificates::new();
    let server = RedisServer::start_with_tls(&certificates, &[]).await;
    let sentinel = Sentinel::watch(&server.address(), &[]);
    let own = format!("cert={}&key={}", certificates.path("client.pem"), certificates.path("client.key"));
    let url =
        |authority| format!("rediss://localhost:{}/?{own}&cacert={}", server.tls_port(), certificates.path(authority));
    let store = RedisStore::connect(&url("ca.pem")).await.expect("the store opens");
    acquire(&store, &RecordKey::new("tls", None, "k")).await;
    assert_listed(&url("ca.pem")).await;
    assert_unknown(&url("other-ca.pem"), "cacert").await;

    let url = format!("redis+sentinel://{}/shop/0", sentinel.address());
    eventually(async || list(&url).await, |said| said.code == Some(0)).await;
    assert_listed(&url).await;
}

#[tokio::test]
async fn postgres_with_tls_is_listed() {
    let certificates = Certificates::new();
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let files = [format!("ssl_cert_file={certificate}"), format!("ssl_key_file={key}"), "ssl=on".to_owned()];
    let server = PostgresServer::start_on_loopback(&files.each_ref().map(String::as_str)).await;
    let database = server.database().await;
    let url = |authority| {
        let authority = certificates.path(authority);
        format!("{}?sslmode=verify-full&sslrootcert={authority}", database.url_at("tester", "localhost"))
    };
    let store = PostgresStore::connect(&url("ca.pem")).await.expect("the store opens");
    store.migrate().await.expect("the tables are made");
    acquire(&store, &RecordKey::new("tls", None, "k")).await;
    assert_listed(&url("ca.pem")).await;
    assert_unknown(&url("other-ca.pem"), "sslrootcert").await;
}
