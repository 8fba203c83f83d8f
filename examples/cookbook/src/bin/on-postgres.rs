//! Recipe 14 of docs/cookbook.md.

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router, extract::State};
use idempotent_runtime::{Tx, idempotent, store::PostgresStore};
use sqlx::{PgPool, Postgres};

/// The row and the record of the response commit together, or neither does: exactly once.
#[idempotent(scope = "charges", cache = [201])]
async fn create_charge(mut tx: Tx<Postgres>, order: String) -> Result<(StatusCode, String), StatusCode> {
    let insert = sqlx::query_scalar::<_, i64>("INSERT INTO charges (what) VALUES ($1) RETURNING id").bind(&order);
    let id = insert.fetch_one(&mut *tx).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    if order.starts_with("unlucky") {
        return Err(StatusCode::BAD_GATEWAY); // Not in `cache`: the row is rolled back.
    }
    Ok((StatusCode::CREATED, format!("charge {id}: {order}\n")))
}

async fn list_charges(State(pool): State<PgPool>) -> Result<Json<Vec<String>>, StatusCode> {
    let rows = sqlx::query_scalar("SELECT what FROM charges ORDER BY id").fetch_all(&pool).await;
    rows.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url =
        std::env::var("DATABASE_URL").unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let pool = PgPool::connect(&url).await?; // The one that you have.
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS charges (id bigserial PRIMARY KEY, what text NOT NULL)")
        .execute(&pool)
        .await?;

    let store = PostgresStore::new(pool.clone());
    store.migrate().await?; // Or run `store.sql()` with your own migrations.
    idempotent_runtime::install(store)?;

    let app =
        Router::new().route("/charges", post(create_charge)).route("/charges", get(list_charges)).with_state(pool);
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?)
}
