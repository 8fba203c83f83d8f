//! An error says what is wrong and what to write instead, and has an exit status of its own.

use std::process::Command;

use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{RecordKey, SealingKey};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::sqlite::{SqliteFile, acquire};

use crate::shop::{Shop, idempotent, run};

async fn assert_fails(arguments: &[&str], code: i32, words: &[&str]) {
    let said = idempotent(arguments).await;
    assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{arguments:?}: {said:?}");
    for words in words {
        assert!(said.error.contains(words), "{words:?} in {said:?}");
    }
    assert!(!said.error.contains("s3cret"), "a password is shown: {said:?}");
}

#[tokio::test]
async fn a_wrong_url_is_told_what_to_write() {
    assert_fails(&["list"], 2, &["no store is named", "--store URL", "IDEMPOTENT_STORE"]).await;
    for (url, words) in [
        ("mysql://app:s3cret@db/shop", "the URL's scheme names no store of this program: write `sqlite://PATH`"),
        ("sentinel://db/shop", "`rediss+sentinel://HOST:PORT/SERVICE`"),
        ("s3cret://db/shop", "the URL's scheme names no store of this program"),
        ("postgres//app:s3cret@db/shop", "this is no URL: write `sqlite://PATH`"),
        ("idempotency.db", "this is no URL: write `sqlite://PATH`"),
        ("redis:h", "this is no URL"),
        ("sqlite://", "the URL names no file"),
        ("sqlite://a.db?mode=ro", "a SQLite URL has no parameters here"),
    ] {
        assert_fails(&["--store", url, "list"], 2, &[words]).await;
    }
}

#[tokio::test]
async fn an_option_that_would_be_ignored_is_rejected() {
    let sqlite = ["--store", "sqlite://a.db"];
    for (options, words) in [
        (&["--cluster"][..], "`--cluster` is for Redis, and this store is sqlite://a.db"),
        (&["--prefix", "p:"], "`--prefix` is for Redis"),
        (&["--schema", "s"], "`--schema` is for PostgreSQL"),
    ] {
        assert_fails(&[&sqlite[..], options, &["list"]].concat(), 2, &[words]).await;
    }
    let long = "s".repeat(64);
    let schema = ["--store", "postgres://app:s3cret@127.0.0.1:1/shop", "--schema", &long, "list"];
    assert_fails(&schema, 2, &["is no name of a schema: PostgreSQL takes 1 to 63 bytes"]).await;
}

#[tokio::test]
async fn a_store_that_is_not_there_is_not_made() {
    let file = SqliteFile::new();
    let url = format!("sqlite://{}", file.path().display());
    assert_fails(&["--store", &url, "list"], 3, &["there is no file", "SqliteStore has opened"]).await;
    assert!(!file.path().exists());
    file.execute("CREATE TABLE orders (id INTEGER)").await;
    assert_fails(&["--store", &url, "list"], 3, &["is a database without the store's tables"]).await;
    assert_eq!(file.number("SELECT count(*) FROM sqlite_schema").await, 1, "no tables are made in it");
    std::fs::write(file.path(), "no database at all").expect("the file is written");
    assert_fails(&["--store", &url, "list"], 3, &["is no SQLite database, or a damaged one"]).await;

    let database = PostgresServer::shared().await.database().await;
    let words = ["has no tables of the store in schema `idempotency`", "--schema"];
    assert_fails(&["--store", &database.url(), "list"], 3, &words).await;
}

#[tokio::test]
async fn error_says_each_cause_once() {
    for store in ["redis://127.0.0.1:1", "rediss://127.0.0.1:1", "mysql://db", "idempotency.db"] {
        let said = idempotent(&["--store", store, "list"]).await.error;
        let reasons: Vec<_> =
            said.lines().map(|line| line.rsplit_once(": ").map_or(line, |(_, reason)| reason)).collect();
        assert!(reasons.windows(2).all(|pair| pair[0] != pair[1]), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_reached_is_named_without_its_password() {
    let words = ["127.0.0.1:1/shop cannot be reached", "the right server, user and database"];
    assert_fails(&["--store", "postgres://app:s3cret@127.0.0.1:1/shop", "list"], 3, &words).await;
    let nowhere = ["--store", "redis://:s3cret@127.0.0.1:1/", "list"];
    assert_fails(&nowhere, 3, &["Redis cannot be reached", "because:"]).await;
    for unencoded in ["app:s3/s3cret@db", "app:s3?s3cret@db", "app:s3#s3cret@db", "127.0.0.1:1/?password=a@s3cret"] {
        assert_fails(&["--store", &format!("postgres://{unencoded}"), "list"], 3, &["cannot be reached"]).await;
        let said = idempotent(&["--store", &format!("redis://{unencoded}"), "list"]).await;
        assert!(said.code == Some(3) && !said.error.contains("s3cret"), "{said:?}");
    }
    let malformed = ["--store", "redis://:s3cret@[::/", "list"];
    assert_fails(&malformed, 3, &["this is no URL of a Redis server"]).await;
    // This server accepts the connection, and sends nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let silent = ["--store", &format!("redis://:s3cret@{address}/"), "list"];
    let said = idempotent(&silent).await;
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(
        said.error.contains("has not answered within 10 s") || said.error.contains("cannot be reached"),
        "{said:?}"
    );
    assert!(!said.error.contains("s3cret"), "{said:?}");
}

#[tokio::test]
async fn server_elsewhere_is_not_reached_in_clear() {
    // The C library reads this as `127.0.0.1`. For this program it is a name like any other.
    for (url, words) in [
        ("redis://:s3cret@0x7f000001:1/", &["in clear to Redis at 0x7f000001", "`rediss://`", "`?tls=disable`"][..]),
        (
            "postgres://app:s3cret@0x7f000001:1/shop?sslmode=allow",
            &["in clear to PostgreSQL at 0x7f000001", "`sslmode=disable`"],
        ),
        ("redis://:s3cret@0x7f000001:1/?tsl=disable", &["unknown parameter", "sentinel_password"]),
        ("postgres://app:s3cret@0x7f000001:1/shop?sslmod=disable", &["unknown parameter", "sslrootcert"]),
    ] {
        assert_fails(&["--store", url, "list"], 3, words).await;
    }
    let database = PostgresServer::start_on_loopback(&[]).await;
    let url = database.database().await.url_at("tester", "0x7f000001");
    assert_fails(&["--store", &url, "list"], 3, &["has no TLS", "`ssl = on`", "`sslmode=disable`"]).await;
    let written = format!("{url}?sslmode=disable");
    assert_fails(&["--store", &written, "list"], 3, &["has no tables of the store"]).await;
}

#[tokio::test]
async fn a_cluster_is_not_taken_for_its_first_server() {
    let part = &RedisCluster::shared().await.urls()[0];
    let words = ["is part of a Redis Cluster, and holds a part of the keys: add `--cluster`"];
    assert_fails(&["--store", part, "list"], 3, &words).await;
    let alone = RedisServer::shared().await.url();
    let words = ["is not part of a Redis Cluster: leave `--cluster` out"];
    assert_fails(&["--store", &alone, "--cluster", "list"], 3, &words).await;
}

#[tokio::test]
async fn a_wrong_entry_is_told_what_to_write() {
    let shop = Shop::sqlite().await;
    for (arguments, code, words) in [
        (&["show"][..], 2, "required"),
        (&["show", "k"], 2, "--scope"),
        (&["show", "--id", "a", "--scope", "s", "k"], 2, "cannot be used with"),
        (&["show", "--id", "abc"], 2, "`--id abc` is no id: write the 32 hexadecimal digits"),
        (&["show", "--scope", "s", "k"], 1, "no entry has this scope, caller and key"),
        (&["show", "--id", "00000000000000000000000000000000"], 1, "no entry of this store has the id 0000"),
        (&["list", "--state", "inflight"], 2, "there is no state `inflight`: write one of outcome_unknown"),
        (&["list", "--limit", "many"], 2, "invalid value 'many'"),
        (&["lst"], 2, "unrecognized subcommand"),
    ] {
        let said = shop.asks(arguments).await;
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert!(said.error.contains(words), "{words} in {said:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_listed_and_purged() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    for name in ["damaged", "unreadable"] {
        let _ = acquire(&store, &RecordKey::new("charges", None, name)).await;
    }
    file.execute("UPDATE idempotency_records SET attempt = -1 WHERE key LIKE '%damaged%'").await;
    file.execute("UPDATE idempotency_records SET key = 'nonsense' WHERE key LIKE '%unreadable%'").await;
    let url = format!("sqlite://{}", file.path().display());
    let listed = idempotent(&["--store", &url, "stuck"]).await;
    assert!(listed.out.starts_with("2 damaged\n"), "{listed:?}");
    assert!(listed.out.contains("`attempt` is out of range") && listed.out.contains("unreadable"), "{listed:?}");
    let purged = idempotent(&["--store", &url, "purge", "--scope", "charges", "damaged", "--yes"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert!(idempotent(&["--store", &url, "stuck"]).await.out.starts_with("1 damaged\n"));
}

#[tokio::test]
async fn a_store_of_digests_is_asked_by_the_key_itself() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let _ = acquire(&store, &RecordKey::new("charges", Some("alice"), "k").digested()).await;
    let url = format!("sqlite://{}", file.path().display());
    let key = ["--store", &url, "show", "--scope", "charges", "--caller", "alice", "k"];
    assert_eq!(idempotent(&key).await.code, Some(1));
    assert_eq!(idempotent(&[&key[..], &["--digested"]].concat()).await.code, Some(0));
}

#[tokio::test]
async fn store_of_keyed_digests_is_asked_with_the_secret() {
    let (file, folder) = (SqliteFile::new(), tempfile::tempdir().expect("a folder"));
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let text = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=";
    let secret: SealingKey = text.parse().expect("a key");
    let _ = acquire(&store, &secret.digested(&RecordKey::new("charges", Some("alice"), "k"))).await;
    let (path, url) = (folder.path().join("digest.key"), format!("sqlite://{}", file.path().display()));
    std::fs::write(&path, text).expect("the file is written");
    let key = ["--store", &url, "show", "--scope", "charges", "--caller", "alice", "--digested", "k"];
    assert_eq!(idempotent(&key).await.code, Some(1));
    let secret = ["--digest-key-file", path.to_str().expect("text")];
    assert_eq!(idempotent(&[&key[..], &secret].concat()).await.code, Some(0));
    let mut program = Command::new(env!("CARGO_BIN_EXE_idempotent"));
    program.args(key).env("IDEMPOTENT_DIGEST_KEY", text);
    assert_eq!(run(program).await.code, Some(0));
}

#[tokio::test]
async fn the_store_may_be_named_by_the_environment() {
    let shop = SqliteFile::new();
    let store = SqliteStore::open(shop.path()).await.expect("the store opens");
    let _ = acquire(&store, &RecordKey::new("charges", None, "k")).await;
    let mut program = Command::new(env!("CARGO_BIN_EXE_idempotent"));
    program.arg("list").env("IDEMPOTENT_STORE", format!("sqlite://{}", shop.path().display()));
    let said = run(program).await;
    assert!(said.out.starts_with("1 in_flight\n"), "{said:?}");
    let help = Command::new(env!("CARGO_BIN_EXE_idempotent"))
        .arg("--help")
        .env("IDEMPOTENT_STORE", "redis://:s3cret@h")
        .output();
    assert!(!String::from_utf8_lossy(&help.expect("the program starts").stdout).contains("s3cret"));
}

#[tokio::test]
async fn a_store_that_fails_says_why() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    drop(store);
    file.execute("ALTER TABLE idempotency_records RENAME COLUMN attempt TO tries").await;
    let url = format!("sqlite://{}", file.path().display());
    assert_fails(&["--store", &url, "list"], 3, &["idempotency.db has failed", "because:", "no such column"]).await;
}
