//! A store on the master that a Sentinel names: passwords, rights and TLS in its URL, and the errors of wrong URLs.

use std::fs;
use std::path::Path;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::RedisStore;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sentinel::Sentinel;
use idempotent_tests::sqlite::acquire;
use idempotent_tests::{Certificates, eventually};

/// Opens a store. Tries again, because a Sentinel that has just started may not know the state of its master yet.
async fn open(url: &str) -> RedisStore {
    let opened = async || RedisStore::connect(url).await;
    eventually(opened, Result::is_ok).await.expect("awaited")
}

#[tokio::test]
async fn sentinel_with_its_own_password_names_the_master() {
    let master = RedisServer::start(&[]).await;
    let _: String = master.command("ACL SETUSER app on >s3cret ~* &* +@all").await;
    let sentinel = Sentinel::watch(&master.address(), &["requirepass sentinels-own"]);
    let url = format!("redis+sentinel://app:s3cret@127.0.0.1:1,{}/shop/3", sentinel.address());
    let store = open(&format!("{url}?sentinel_password=sentinels-own&protocol=resp3")).await;
    let key = RecordKey::new("sentinels", None, "k");
    acquire(&store, &key).await;
    assert!(master.command::<String>("INFO keyspace").await.contains("db3:keys="));

    for (url, part) in [
        (url.clone(), "NOAUTH"),
        (format!("{url}?sentinel_password=wrong"), "AuthenticationFailed"),
        (format!("redis+sentinel://{}/shop/0?sentinel_password=sentinels-own", sentinel.address()), ""),
        (format!("{}?sentinel_password=sentinels-own", url.replace("shop", "other")), "not found"),
    ] {
        let told = RedisStore::connect(&url).await.map(drop);
        if part.is_empty() {
            told.expect("the default user needs no password");
            continue;
        }
        let told = format!("{:?}", told.expect_err("it is wrong"));
        assert!(told.contains(part) && !told.contains("s3cret") && !told.contains("sentinels-own"), "{part} in {told}");
    }
}

/// Returns the rights that the page for operators names for a user of the Sentinels.
fn documented() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/redis.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let line = page.lines().find(|line| line.contains("+sentinel|masters")).expect("the page tells them");
    line.trim_matches(['`', '.']).split(' ').map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn user_of_the_documented_rights_asks_and_hears_sentinels() {
    let master = RedisServer::start(&[]).await;
    let rights = documented();
    // Before version 7.2, Redis does not have this command.
    let rights: Vec<&str> = rights.iter().map(String::as_str).filter(|right| *right != "+client|setinfo").collect();
    let user =
        |name: &str, rights: &[&str]| format!("user {name} on >sentinels-own resetchannels {}", rights.join(" "));
    let of_missing = |missing: &str| rights.iter().copied().filter(|right| *right != missing).collect::<Vec<_>>();
    let lines =
        [user("app", &rights), user("blind", &of_missing("+sentinel|masters")), user("roleless", &of_missing("+role"))];
    let sentinel = Sentinel::watch(&master.address(), &lines.each_ref().map(String::as_str));
    let url = |user| {
        let address = sentinel.address();
        format!("redis+sentinel://{address}/shop/0?sentinel_user={user}&sentinel_password=sentinels-own")
    };
    let store = open(&url("app")).await;
    acquire(&store, &RecordKey::new("sentinels", None, "rights")).await;
    sentinel.until_it_is_heard().await;
    for user in ["blind", "roleless"] {
        let told = format!("{:?}", RedisStore::connect(&url(user)).await.expect_err(user));
        assert!(told.to_lowercase().contains("perm"), "{user}: {told}");
    }
}

#[tokio::test]
async fn sentinel_and_master_are_reached_by_tls() {
    let certificates = Certificates::new();
    let master = RedisServer::start_with_tls(&certificates, &["--tls-auth-clients no", "--tls-replication yes"]).await;
    let port = free_tls_port();
    let lines = [
        format!("tls-port {port}"),
        format!("tls-cert-file {}", certificates.path("server.pem")),
        format!("tls-key-file {}", certificates.path("server.key")),
        format!("tls-ca-cert-file {}", certificates.path("ca.pem")),
        "tls-auth-clients no".to_owned(),
        "tls-replication yes".to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let sentinel = Sentinel::watch(&format!("127.0.0.1:{}", master.tls_port()), &lines);
    let ca = certificates.path("ca.pem");
    let store = open(&format!("rediss+sentinel://localhost:{port}/shop/0?cacert={ca}")).await;
    acquire(&store, &RecordKey::new("sentinels", None, "tls")).await;
    // The other port of the Sentinel has no TLS, and the master has TLS.
    open(&format!("rediss+sentinel://{}/shop/0?cacert={ca}&sentinel_tls=disable", sentinel.address())).await;
    let other = certificates.path("other-ca.pem");
    let told = RedisStore::connect(&format!("rediss+sentinel://localhost:{port}/shop/0?cacert={other}")).await;
    assert!(format!("{:?}", told.expect_err("it is unknown")).contains("UnknownIssuer"));
}

fn free_tls_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
