//! A handler's transaction as a connection of SeaORM.

use idempotent_runtime::{Tx, TxConnection};
use sea_orm::entity::prelude::async_trait::async_trait;
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, Postgres};
use tokio::sync::Mutex;

/// SeaORM shares a connection, and sqlx borrows it exclusively: hence the lock.
pub(crate) struct SeaTx<'t>(Mutex<&'t mut TxConnection<Postgres>>);

impl<'t> SeaTx<'t> {
    pub(crate) fn new(tx: &'t mut Tx<Postgres>) -> Self {
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

#[async_trait]
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
