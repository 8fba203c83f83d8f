//! TLS to PostgreSQL: which certificates are believed, and what is never sent in clear.

use std::fs;

use axum::Router;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, Store, StoreError};
use idempotent_runtime::{RecordKey, Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::sqlite::{acquire, claim_request};
use idempotent_tests::{Certificates, Server, eventually, stores};
use sqlx::Postgres;
use sqlx::postgres::{PgPool, PgPoolOptions};

/// To the C library, this is `127.0.0.1`; to this one it is a name as any other.
const ELSEWHERE: &str = "0x7f000001";

#[idempotent(scope = "tls-transfers")]
async fn transfer(_tx: Tx<Postgres>) -> &'static str {
    "transferred"
}

async fn is_encrypted(pool: &PgPool) -> bool {
    let ssl = sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetch_one(pool).await;
    ssl.expect("the server answers")
}

#[tokio::test]
async fn nothing_in_clear_leaves_for_postgres_unless_written() {
    let server = PostgresServer::start_on_loopback(&[]).await;
    let database = server.database().await;
    let url = database.url_at("tester", ELSEWHERE);

    let rejected = PostgresStore::connect(&url).await.expect_err("it has no TLS").to_string();
    assert!(rejected.contains("`ssl = on`") && rejected.contains("`sslmode=disable`"), "{rejected}");
    // The application's own pool goes on in clear without a word. The store does not.
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.expect("sqlx falls back");
    let store = PostgresStore::new(pool.clone());
    let rejected = format!("{:?}", store.migrate().await.expect_err("it has no TLS"));
    assert!(rejected.contains("`ssl = on`") && rejected.contains("`sslmode=disable`"), "{rejected}");
    let key = RecordKey::new("tls", None, "k");
    let rejected = store.claim(&key, claim_request()).await.expect_err("it has no TLS");
    assert!(matches!(&rejected, StoreError::NotSent(_)), "{rejected:?}");
    let registry = Registry::new(store);
    let server_of_http = Server::start(Router::new().route("/transfers", post(transfer)).layer(registry.layer())).await;
    let rejected = server_of_http.post_with_key("/transfers", "k").await;
    assert_eq!(rejected.rejection(), "store_unavailable");
    for written in [format!("{url}?sslmode=disable"), database.url_at("tester", "127.0.0.1")] {
        PostgresStore::connect(&written).await.expect("it may be in clear").migrate().await.expect("it migrates");
    }
}

#[tokio::test]
async fn untrusted_postgres_certificate_is_rejected() {
    let certificates = Certificates::new();
    let path = |name| certificates.path(name);
    let hba = path("pg_hba.conf");
    let lines = "local all all trust\nhostssl all certified 127.0.0.1/32 trust clientcert=verify-ca\nhost all tester all trust\n";
    fs::write(&hba, lines).expect("the file is written");
    let files = [
        format!("ssl_cert_file={}", path("server.pem")),
        format!("ssl_key_file={}", path("server.key")),
        format!("ssl_ca_file={}", path("ca.pem")),
        format!("hba_file={hba}"),
        "ssl=on".to_owned(),
    ];
    let server = PostgresServer::start_on_loopback(&files.each_ref().map(String::as_str)).await;
    let database = server.database().await;
    sqlx::query("CREATE ROLE certified LOGIN SUPERUSER").execute(&database.pool(1).await).await.expect("it is made");

    let connect = async |user: &str, host: &str, parameters: &str| {
        let url = format!("{}?{parameters}", database.url_at(user, host));
        // With its causes.
        PostgresStore::connect(&url).await.map_err(|error| format!("{error}: {error:?}"))
    };
    let full = format!("sslmode=verify-full&sslrootcert={}", path("ca.pem"));
    for host in ["localhost", "127.0.0.1"] {
        let store = connect("tester", host, &full).await.expect("the certificate is believed");
        assert!(is_encrypted(store.pool()).await);
        store.migrate().await.expect("the tables are made");
        acquire(&store, &RecordKey::new("tls", None, host)).await;
    }
    for mode in ["verify-full", "verify-ca", "require"] {
        let unknown = format!("sslmode={mode}&sslrootcert={}", path("other-ca.pem"));
        let unknown = connect("tester", "localhost", &unknown).await.expect_err(mode);
        assert!(unknown.contains("UnknownIssuer"), "{mode}: {unknown}");
    }
    let missing = connect("certified", "localhost", &full).await.expect_err("it has none");
    assert!(missing.contains("valid client certificate") || missing.contains("CertificateRequired"), "{missing}");
    let own = format!("{full}&sslcert={}&sslkey={}", path("client.pem"), path("client.key"));
    connect("certified", "localhost", &own).await.expect("it has one");

    // From files: what the command line says cannot be set.
    fs::copy(path("named.pem"), path("server.pem")).expect("the file is replaced");
    sqlx::query("SELECT pg_reload_conf()").execute(&database.pool(1).await).await.expect("the server answers");
    let misnamed = async || connect("tester", "127.0.0.1", &full).await.map(drop).err().unwrap_or_default();
    eventually(misnamed, |told| told.contains("NotValidForName")).await;
    fs::copy(path("expired.pem"), path("server.pem")).expect("the file is replaced");
    sqlx::query("SELECT pg_reload_conf()").execute(&database.pool(1).await).await.expect("the server answers");
    let expired = async || connect("tester", "localhost", &full).await.map(drop).err().unwrap_or_default();
    eventually(expired, |told| told.contains("Expired")).await;
}

#[idempotent(scope = "tls-processes")]
async fn process(mut tx: Tx<Postgres>) -> String {
    let process: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.expect("an answer");
    process.to_string()
}

/// sqlx goes on in clear without a word where a later connection is offered no TLS.
#[tokio::test]
async fn each_connection_of_a_transaction_is_proven_to_be_encrypted() {
    let certificates = Certificates::new();
    let files = [("cert", "server.pem"), ("key", "server.key")];
    let files = files.map(|(setting, file)| format!("ssl_{setting}_file={}", certificates.path(file)));
    let server = PostgresServer::start_on_loopback(&files.each_ref().map(String::as_str)).await;
    let database = server.database().await;
    let direct = database.pool(1).await;
    let set_tls = async |is_on: &str| {
        let alter = sqlx::AssertSqlSafe(format!("ALTER SYSTEM SET ssl = {is_on}"));
        sqlx::raw_sql(alter).execute(&direct).await.expect("it is set");
        sqlx::query("SELECT pg_reload_conf()").execute(&direct).await.expect("the server answers");
        let mode = if is_on == "on" { "require" } else { "prefer" };
        let url = format!("{}?sslmode={mode}", database.url_at("tester", "localhost"));
        let is_set = async || {
            let pool = PgPoolOptions::new().max_connections(1).connect(&url).await.ok()?;
            Some(is_encrypted(&pool).await == (is_on == "on"))
        };
        eventually(is_set, |is_set| *is_set == Some(true)).await;
    };
    set_tls("on").await;
    // The system takes this address for the machine itself. To this library, it is one as any other; a certificate may name it.
    let url = database.url_at("tester", "0.0.0.0");
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.expect("the server answers");
    let registry = Registry::new(stores::migrated(&pool).await);
    let http = Server::start(Router::new().route("/processes", post(process)).layer(registry.layer())).await;
    let first = http.post_with_key("/processes", "k1").await;
    assert!(first.text().parse::<i32>().is_ok(), "{first:?}");

    set_tls("off").await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()";
    let ended = sqlx::query_scalar::<_, i64>(end).fetch_one(&direct).await.expect("the server answers");
    assert!(ended >= 1, "the connections end");
    let rejected = http.post_with_key("/processes", "k2").await;
    assert_eq!(rejected.rejection(), "store_unavailable");
    set_tls("on").await;
    let again = eventually(async || http.post_with_key("/processes", "k2").await, |answer| answer.status == 200).await;
    assert!(!again.is_replay());
}
