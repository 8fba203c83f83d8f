//! The database is moved, deleted or replaced while a process has it open. No process would read a record in the old
//! file again.

use std::fs;
use std::path::Path;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Logs, Runs, Server, eventually};
use sqlx::Sqlite;

#[idempotent(scope = "moved-plain")]
async fn plain(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "moved-transaction")]
async fn in_transaction(_: Tx<Sqlite>, State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

async fn serve(file: &SqliteFile, runs: &Runs) -> Server {
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let router = Router::new()
        .route("/plain", post(plain))
        .route("/in-transaction", post(in_transaction))
        .with_state(runs.clone());
    Server::start(router.layer(Registry::new(store).layer())).await
}

fn move_files(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        fs::rename(name(from), name(to)).expect("the file is moved");
    }
}

#[tokio::test]
async fn moved_database_is_noticed_until_it_is_put_back() {
    let logs = Logs::collect();
    let (file, runs) = (SqliteFile::new(), Runs::free());
    let server = serve(&file, &runs).await;
    assert_eq!(server.post_with_key("/plain", "before").await.text(), "run 1");
    let elsewhere = file.path().with_extension("moved");

    move_files(&file.path(), &elsewhere);

    for path in ["/plain", "/in-transaction"] {
        for key in ["before", "new"] {
            let answer = server.post_with_key(path, key).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path} {key}: {}", answer.text());
        }
    }
    assert_eq!(runs.started(), 1, "nothing runs");
    let errors =
        || logs.of_level("ERROR").iter().filter(|line| line.contains("was moved, deleted or replaced")).count();
    eventually(async || errors(), |&errors| errors > 0).await;

    move_files(&elsewhere, &file.path());

    let replay = server.post_with_key("/plain", "before").await;
    assert_eq!((replay.text(), replay.is_replay()), ("run 1", true));
    assert_eq!(server.post_with_key("/plain", "new").await.text(), "run 2");
    assert_eq!(server.post_with_key("/in-transaction", "new").await.text(), "run 3");
}

/// The next process creates a new file, and would not find what the first process records in the old one.
#[tokio::test]
async fn replaced_database_takes_no_record() {
    let (file, runs) = (SqliteFile::new(), Runs::held());
    let server = serve(&file, &runs).await;
    let (first, ()) = tokio::join!(server.post_with_key("/plain", "k"), async {
        runs.until_started(1).await;
        move_files(&file.path(), &file.path().with_extension("moved"));
        drop(SqliteStore::open(file.path()).await.expect("a new file"));
        assert_eq!(server.post_with_key("/plain", "new").await.status, StatusCode::SERVICE_UNAVAILABLE);
        runs.let_finish(1);
    });
    assert_eq!(runs.started(), 1);
    // The response is sent as when a store fails, because the handler still has its lease.
    assert_eq!(first.text(), "run 1");
}
