//! The file of leases is deleted, replaced by an older copy, or cannot be used: no claim loses its lease, and no
//! duplicate runs.

use std::fs;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, EntryState, Held, SqliteStore, Store as _, StoreAdmin, Token,
};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::sqlite::{SqliteFile, acquire, claim_request, record, record_key};
use idempotent_tests::{Runs, Server, eventually};
use sqlx::Executor as _;

use super::leases::{LONG, TTL, brief, leases_connection, open, renewed_leases};

fn delete_leases(file: &SqliteFile) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", file.leases().display()));
    }
    assert!(!file.leases().exists());
}

#[tokio::test]
async fn without_the_file_of_leases_all_begin_anew() {
    let file = SqliteFile::new();
    let store = open(&file).await;
    let (key, request) = (record_key("k"), brief(400));
    store.claim(&key, request).await.unwrap();
    drop(store);
    file.closed().await;
    file.first_leases_over(0).await;
    delete_leases(&file);

    let store = open(&file).await;

    let other = claim_request();
    assert!(matches!(store.claim(&key, other).await.unwrap(), Claim::InFlight { .. }), "its handler may run");
    let claim = async || store.claim(&key, other).await.unwrap();
    eventually(claim, |claim| *claim == Claim::Acquired { attempt: 2 }).await;
    assert_eq!(store.renew(&key, request.token, LONG).await.unwrap(), Held::No);
}

#[tokio::test]
async fn processes_that_run_follow_to_a_new_file_of_leases() {
    let file = SqliteFile::new();
    let holder = open(&file).await;
    let (key, request) = (record_key("k"), brief(5_000));
    holder.claim(&key, request).await.unwrap();
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);
    delete_leases(&file);
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);

    let other = open(&file).await;

    assert!(matches!(other.claim(&key, claim_request()).await.unwrap(), Claim::InFlight { .. }));
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);
    assert_eq!(renewed_leases(&file).await, 1, "it is in the new file");
    let entry = other.get(&key).await.unwrap().unwrap();
    let EntryState::Claimed { lease: Some(left), .. } = entry.state else { panic!("{entry:?}") };
    assert!(left > LONG / 2, "{left:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn file_of_leases_has_the_rights_of_the_database() {
    use std::os::unix::fs::PermissionsExt as _;

    let file = SqliteFile::new();
    file.execute("CREATE TABLE charges (id INTEGER PRIMARY KEY)").await;
    for mode in [0o600, 0o660] {
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        let store = open(&file).await;
        let key = record_key(&format!("{mode}"));
        let token = acquire(&store, &key).await;
        assert_eq!(store.renew(&key, token, LONG).await.unwrap(), Held::Yes);
        for suffix in ["", "-wal", "-shm"] {
            let path = format!("{}{suffix}", file.leases().display());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path}");
        }
        drop(store);
        file.closed().await;
        delete_leases(&file);
    }
}

#[tokio::test]
async fn lost_file_of_leases_makes_no_running_claim_unknown() {
    let file = SqliteFile::new();
    let holder = open(&file).await;
    let (key, request) = (record_key("k"), brief(50).with_after_crash(AfterCrash::Reject));
    holder.claim(&key, request).await.unwrap();
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);
    file.first_leases_over(0).await;
    delete_leases(&file);

    let other = open(&file).await;
    assert!(other.unknown_outcomes().await.unwrap().is_empty());
    for after_crash in [AfterCrash::Reject, AfterCrash::Rerun] {
        let retry = request.with_token(Token::unique()).with_after_crash(after_crash);
        assert!(matches!(other.claim(&key, retry).await.unwrap(), Claim::InFlight { .. }));
    }
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes, "in the new file");
}

#[tokio::test]
async fn restored_older_file_of_leases_ends_no_lease() {
    let file = SqliteFile::new();
    let holder = open(&file).await;
    let (key, request) = (record_key("k"), brief(300));
    holder.claim(&key, request).await.unwrap();
    assert_eq!(holder.renew(&key, request.token, request.lease).await.unwrap(), Held::Yes);
    let backup = format!("{}.backup", file.leases().display());
    let copy = sqlx::AssertSqlSafe(format!("VACUUM INTO '{backup}'"));
    leases_connection(&file).await.execute(sqlx::query(copy)).await.unwrap();
    delete_leases(&file);
    drop(open(&file).await);
    // In the backup, the lease has expired, because nothing has renewed it there.
    let mut old = {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&backup);
        sqlx::ConnectOptions::connect(&options).await.unwrap()
    };
    old.execute("UPDATE idempotency_leases SET lease_until = 1").await.unwrap();
    sqlx::Connection::close(old).await.unwrap();
    delete_leases(&file);
    fs::rename(&backup, file.leases()).unwrap();

    let other = open(&file).await;
    assert!(matches!(other.claim(&key, claim_request()).await.unwrap(), Claim::InFlight { .. }));
    assert_eq!(holder.renew(&key, request.token, request.lease).await.unwrap(), Held::Yes);
}

/// The backup that is put back is a copy of the file that is in use, not of an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_put_back_of_the_same_leases_ends_no_lease() {
    let file = SqliteFile::new();
    let holder = open(&file).await;
    let (key, request) = (record_key("k"), brief(300));
    holder.claim(&key, request).await.unwrap();
    let backup = format!("{}.backup", file.leases().display());
    let copy = sqlx::AssertSqlSafe(format!("VACUUM INTO '{backup}'"));
    leases_connection(&file).await.execute(sqlx::query(copy)).await.unwrap();
    assert_eq!(holder.renew(&key, request.token, request.lease).await.unwrap(), Held::Yes);
    delete_leases(&file);
    fs::rename(&backup, file.leases()).unwrap();

    let other = open(&file).await;

    stays_in_flight(&holder, &other, &key, &request).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_deleted_under_two_processes_end_no_lease() {
    let file = SqliteFile::new();
    let (holder, other) = (open(&file).await, open(&file).await);
    let (key, request) = (record_key("k"), brief(300));
    holder.claim(&key, request).await.unwrap();
    assert_eq!(holder.renew(&key, request.token, request.lease).await.unwrap(), Held::Yes);
    // A renewal that fails opens the file again, and the lock makes the renewals in the old file fail.
    let mut old = leases_connection(&file).await;
    old.execute("BEGIN IMMEDIATE").await.unwrap();
    delete_leases(&file);

    stays_in_flight(&holder, &other, &key, &request).await;

    assert!(file.leases().exists(), "it is made anew");
    old.execute("ROLLBACK").await.unwrap();
    stays_in_flight(&holder, &other, &key, &request).await;
    assert_eq!(holder.complete(&key, request.token, record("paid"), TTL).await.unwrap(), Held::Yes);
}

/// Renews the claim for the time of two leases. Checks that it stays in flight for the other store.
async fn stays_in_flight(holder: &SqliteStore, other: &SqliteStore, key: &RecordKey, request: &ClaimRequest) {
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < 2 * request.lease {
        assert_eq!(holder.renew(key, request.token, request.lease).await.expect("the store renews"), Held::Yes);
        let duplicate = other.claim(key, request.with_token(Token::unique())).await.expect("the store claims");
        assert!(matches!(duplicate, Claim::InFlight { .. }), "{:?}: {duplicate:?}", begun.elapsed());
        let entry = other.get(key).await.expect("the store answers").expect("an entry");
        assert!(matches!(entry.state, EntryState::Claimed { lease: Some(_), .. }), "{entry:?}");
    }
}

#[idempotent(scope = "unusable-leases", on_store_error = "run", fingerprint = none)]
async fn runs_unguarded(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// The database still answers, and has the claim of the handler, so `on_store_error = "run"` does not apply.
#[tokio::test]
async fn unusable_file_of_leases_runs_no_duplicate_unguarded() {
    for what in ["a folder", "another file"] {
        let (file, runs) = (SqliteFile::new(), Runs::held());
        let serve = async || {
            let registry = Registry::builder(open(&file).await).build();
            Server::start(
                Router::new().route("/", post(runs_unguarded)).with_state(runs.clone()).layer(registry.layer()),
            )
            .await
        };
        let (one, other) = (serve().await, serve().await);
        let duplicates = async {
            runs.until_started(1).await;
            fs::remove_file(file.leases()).unwrap();
            if what == "a folder" {
                fs::create_dir(file.leases()).unwrap();
            } else {
                fs::write(file.leases(), "no database").unwrap();
            }
            for _ in 0..3 {
                assert_eq!(other.post_with_key("/", "k").await.rejection(), "store_unavailable", "{what}");
            }
            runs.let_finish(1);
        };
        let (_, ()) = tokio::join!(one.post_with_key("/", "k"), duplicates);
        assert_eq!(runs.started(), 1, "{what}");
    }
}
