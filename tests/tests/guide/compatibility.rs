//! The table of versions, and SeaORM with a handler's transaction.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Form, Router};
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Runs, Server, answer};
use sea_orm::entity::prelude::*;
use sea_orm::{Set, SqlErr};
use sqlx::Postgres;

use crate::guide::sea_tx::SeaTx;

#[allow(unreachable_pub, reason = "SeaORM's derive macro makes public items")]
mod charge {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "charges")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        #[sea_orm(unique)]
        pub invoice: String,
        pub cents: i64,
    }

    #[derive(Clone, Copy, Debug, DeriveRelation, EnumIter)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[derive(serde::Deserialize)]
struct NewCharge {
    invoice: String,
    cents: i64,
}

// The page has the following handler, word for word.

#[idempotent(scope = "sea-charges", cache = [201, 409])]
async fn create_charge(mut tx: Tx<Postgres>, Form(order): Form<NewCharge>) -> Result<(StatusCode, String), StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let database = SeaTx::new(&mut tx);
    let NewCharge { invoice, cents } = order;
    let charge = charge::ActiveModel { invoice: Set(invoice), cents: Set(cents), ..Default::default() };
    database.execute_unprepared("SAVEPOINT before_insert").await.map_err(failed)?;
    match charge.insert(&database).await {
        Ok(charge) => Ok((StatusCode::CREATED, charge.id.to_string())),
        Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {
            database.execute_unprepared("ROLLBACK TO before_insert").await.map_err(failed)?;
            Err(StatusCode::CONFLICT)
        }
        Err(error) => Err(failed(error)),
    }
}

// The code of the page ends here.

/// Uses the methods that the handler of the page does not use, and answers 402, which is not recorded.
#[idempotent(scope = "sea-declined-charges", cache = [201])]
async fn decline_charge(mut tx: Tx<Postgres>, State(runs): State<Runs>, Form(order): Form<NewCharge>) -> StatusCode {
    runs.run().await;
    let database = SeaTx::new(&mut tx);
    let charge = charge::ActiveModel { invoice: Set(order.invoice), cents: Set(order.cents), ..Default::default() };
    let charge = charge.insert(&database).await.expect("the row is inserted");
    let found = charge::Entity::find_by_id(charge.id).one(&database).await.expect("the row is read");
    assert_eq!(found.map(|found| found.cents), Some(order.cents), "the transaction sees its own row");
    let all = charge::Entity::find().all(&database).await.expect("the rows are read");
    let deleted = charge::Entity::delete_many().exec(&database).await.expect("the rows are deleted");
    assert_eq!(deleted.rows_affected, all.len() as u64);
    StatusCode::PAYMENT_REQUIRED
}

/// Answers 201 although the database aborted the transaction.
#[idempotent(scope = "sea-conflicts", cache = [201])]
async fn meet_a_conflict(mut tx: Tx<Postgres>) -> StatusCode {
    let conflict = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$";
    SeaTx::new(&mut tx).execute_unprepared(conflict).await.expect_err("the statement fails");
    StatusCode::CREATED
}

#[tokio::test]
async fn sea_orm_writes_commit_with_the_record_or_not_at_all() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let table =
        "CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, invoice text UNIQUE, cents bigint)";
    sqlx::raw_sql(table).execute(&pool).await.expect("the table is made");
    let runs = Runs::free();
    let app = Router::new()
        .route("/charges", post(create_charge))
        .route("/declined", post(decline_charge))
        .route("/conflicts", post(meet_a_conflict))
        .with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let send = async |path: &str, key: &str| {
        let form = [("invoice", "2026-1"), ("cents", "1999")];
        answer(server.post(path).header("idempotency-key", key).form(&form)).await
    };
    for (key, status, is_replay) in [
        ("first", StatusCode::CREATED, false),
        ("first", StatusCode::CREATED, true),
        ("second", StatusCode::CONFLICT, false),
        ("second", StatusCode::CONFLICT, true),
    ] {
        let charged = send("/charges", key).await;
        assert_eq!((charged.status, charged.is_replay()), (status, is_replay), "{key}: {}", charged.text());
    }
    assert_eq!(send("/conflicts", "k").await.rejection(), "transaction_conflict", "the engine sees SeaORM's errors");
    sqlx::raw_sql("UPDATE charges SET invoice = '2026-0'").execute(&pool).await.expect("the row is updated");
    for run in [1, 2] {
        assert_eq!((send("/declined", "k").await.status, runs.started()), (StatusCode::PAYMENT_REQUIRED, run));
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM charges").fetch_one(&pool).await.expect("a number");
    assert_eq!(rows, 1);
}

/// The rows of the page's first table: crate and version.
fn versions_of_the_page() -> BTreeMap<String, String> {
    let page = crate::guide::page("compatibility");
    let (versions, _) = page.split_once("\n# ").expect("a chapter after it");
    let rows = versions.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, rest)| {
        let version = rest.split_once(" |").expect("a second column").0;
        (name.to_owned(), version.to_owned())
    })
    .collect()
}

fn file_of_the_workspace(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).expect("the file is there")
}

#[test]
fn versions_of_the_page_are_those_of_the_lock_file() {
    let lock = file_of_the_workspace("Cargo.lock");
    let versions = versions_of_the_page();
    assert!(versions.len() > 8, "{versions:?}");
    for (name, version) in versions {
        let entry = format!("name = \"{name}\"\nversion = \"");
        let locked = lock.split(&entry).skip(1).map(|rest| rest.split('"').next().expect("a version"));
        let is_locked = |locked: &str| locked.strip_prefix(version.as_str()).is_some_and(|rest| rest.starts_with('.'));
        assert!(locked.clone().any(is_locked), "{name} {version}: locked are {:?}", locked.collect::<Vec<_>>());
    }
}

#[test]
fn versions_of_the_page_are_those_of_the_manifest() {
    let manifest = file_of_the_workspace("Cargo.toml");
    for (name, version) in versions_of_the_page() {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{name} = "))).expect("a dependency");
        let wanted = line.split('"').nth(1).expect("a version");
        assert!(wanted == version || wanted.starts_with(&format!("{version}.")), "{name}: {wanted} and not {version}");
    }
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    assert!(crate::guide::page("compatibility").contains(&format!("Rust {} or newer", rust.trim_matches('"'))));
}

#[test]
fn code_of_the_bridge_to_sea_orm_is_what_is_played() {
    let (played, page) = (include_str!("compatibility.rs"), crate::guide::page("compatibility"));
    let (_, handler) = played.split_once("the following handler, word for word.\n\n").expect("the handler begins");
    let (handler, _) = handler.split_once("\n// The code of the page ends here.").expect("the handler ends");
    assert!(page.contains(include_str!("sea_tx.rs")) && page.contains(handler));
}
