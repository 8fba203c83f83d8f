//! The table of versions, and SeaORM over a handler's transaction.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Form, Router};
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, Tx, TxConnection, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Runs, Server, answer};
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::Values;
use sea_orm::{ActiveValue, DbBackend, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, Postgres};
use tokio::sync::Mutex;

/// A handler's transaction as a connection of SeaORM. SeaORM's queries take `&self` and sqlx's take `&mut self`, so there is a lock.
struct SeaTx<'t>(Mutex<&'t mut TxConnection<Postgres>>);

impl<'t> SeaTx<'t> {
    fn new(tx: &'t mut Tx<Postgres>) -> Self {
        Self(Mutex::new(&mut **tx))
    }
}

fn query(statement: &Statement) -> sqlx::query::Query<'_, Postgres, SqlxValues> {
    let values = statement.values.clone().unwrap_or(Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql.as_str()), SqlxValues(values))
}

fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

#[async_trait::async_trait]
impl ConnectionTrait for SeaTx<'_> {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut connection = self.0.lock().await;
        query(&statement).execute(&mut **connection).await.map(Into::into).map_err(failed)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut connection = self.0.lock().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut **connection).await.map(Into::into).map_err(failed)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let mut connection = self.0.lock().await;
        let row = query(&statement).fetch_optional(&mut **connection).await.map_err(failed)?;
        Ok(row.map(Into::into))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut connection = self.0.lock().await;
        let rows = query(&statement).fetch_all(&mut **connection).await.map_err(failed)?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}

#[allow(unreachable_pub, reason = "SeaORM's derive macro makes public items")]
mod charge {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "charges")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub cents: i64,
    }

    #[derive(Clone, Copy, Debug, DeriveRelation, EnumIter)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[derive(serde::Deserialize)]
struct NewCharge {
    cents: i64,
}

/// Declines a charge of 12 or more after the row is written. A charge of 0 meets a conflict, as another transaction may cause it.
#[idempotent(scope = "sea-charges", cache = [201])]
async fn create_charge(
    mut tx: Tx<Postgres>,
    State(runs): State<Runs>,
    Form(order): Form<NewCharge>,
) -> Result<(StatusCode, String), StatusCode> {
    runs.run().await;
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let database = SeaTx::new(&mut tx);
    let charge = charge::ActiveModel { cents: ActiveValue::Set(order.cents), ..Default::default() };
    let charge = charge.insert(&database).await.map_err(failed)?;
    let found = charge::Entity::find_by_id(charge.id).one(&database).await.map_err(failed)?;
    assert_eq!(found.map(|found| found.cents), Some(order.cents), "the transaction sees its own row");
    let all = charge::Entity::find().all(&database).await.map_err(failed)?;
    let updated = database.execute_unprepared("UPDATE charges SET cents = cents").await.map_err(failed)?;
    assert_eq!(updated.rows_affected(), all.len() as u64);
    match order.cents {
        0 => {
            let conflict = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$";
            database.execute_unprepared(conflict).await.map_err(failed)?;
            Ok((StatusCode::CREATED, "unreachable: the statement fails".to_owned()))
        }
        1..12 => Ok((StatusCode::CREATED, charge.id.to_string())),
        _ => Err(StatusCode::PAYMENT_REQUIRED),
    }
}

#[tokio::test]
async fn sea_orm_writes_commit_with_the_record_or_not_at_all() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let table = "CREATE TABLE charges (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, cents BIGINT NOT NULL)";
    sqlx::raw_sql(table).execute(&pool).await.expect("the table is made");
    let runs = Runs::free();
    let app = Router::new().route("/charges", post(create_charge)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let send = async |key: &str, cents: &str| {
        answer(server.post("/charges").header("idempotency-key", key).form(&[("cents", cents)])).await
    };
    let first = send("k", "7").await;
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "1"));
    let retry = send("k", "7").await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("1", true, 1));
    for run in [2, 3] {
        assert_eq!(send("declined", "12").await.status, StatusCode::PAYMENT_REQUIRED);
        assert_eq!(runs.started(), run, "nothing is recorded");
    }
    assert_eq!(send("conflict", "0").await.rejection(), "transaction_conflict", "the engine sees SeaORM's errors");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM charges").fetch_one(&pool).await.expect("a number");
    assert_eq!(rows, 1);
}

/// The rows of the page's table: crate and version.
fn versions_of_the_page() -> BTreeMap<String, String> {
    let page = crate::guide::page("compatibility");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
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
    let played = include_str!("compatibility.rs");
    let begin = played.find("/// A handler's transaction as").expect("the bridge begins");
    let end = played.find("#[allow(unreachable_pub").expect("the bridge ends");
    assert!(crate::guide::page("compatibility").contains(played[begin..end].trim_end()));
}
