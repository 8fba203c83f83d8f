//! Errors inside a `Tx`, with SQLite and with PostgreSQL.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, SqliteStore};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::Database;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::stores::postgres_beside;
use idempotent_tests::{Answer, Runs, Server, answer};

const TABLES: &str = "CREATE TABLE attempts (email TEXT NOT NULL);
    CREATE TABLE accounts (email TEXT NOT NULL UNIQUE);
    CREATE TABLE charges (card TEXT NOT NULL)";

struct Failed(StatusCode);

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        self.0.into_response()
    }
}

impl From<sqlx::Error> for Failed {
    fn from(_: sqlx::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

type Ended = Result<StatusCode, Failed>;

/// Sends the same body with this key.
async fn send(server: &Server, path: &str, key: &str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body("ada@example.com")).await
}

macro_rules! errors_over {
    ($name:ident, $database:ty, $start:expr, $outlives:ty) => {
        mod $name {
            use super::*;

            #[idempotent(scope = "sign-ups", shared_scope, cache = [201, 409])]
            async fn sign_up(mut tx: Tx<$database>, State(runs): State<Runs>, email: String) -> Ended {
                runs.run().await;
                sqlx::query("INSERT INTO attempts (email) VALUES ($1)").bind(&email).execute(&mut *tx).await?;
                let mut savepoint = tx.begin().await?;
                let insert = sqlx::query("INSERT INTO accounts (email) VALUES ($1)").bind(&email);
                match insert.execute(&mut *savepoint).await {
                    Ok(_) => {
                        savepoint.commit().await?;
                        Ok(StatusCode::CREATED)
                    }
                    Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                        savepoint.rollback().await?;
                        Ok(StatusCode::CONFLICT)
                    }
                    Err(error) => Err(error.into()),
                }
            }

            async fn insert_twice(mut tx: Tx<$database>, email: &str) -> Ended {
                sqlx::query("INSERT INTO attempts (email) VALUES ($1)").bind(email).execute(&mut *tx).await?;
                let insert = sqlx::query("INSERT INTO accounts (email) VALUES ($1)").bind(email);
                match insert.execute(&mut *tx).await {
                    Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(StatusCode::CONFLICT),
                    inserted => Ok(inserted.map(|_| StatusCode::CREATED)?),
                }
            }

            #[idempotent(scope = "bare-sign-ups", shared_scope, cache = [201, 409])]
            async fn sign_up_without_savepoint(tx: Tx<$database>, State(runs): State<Runs>, email: String) -> Ended {
                runs.run().await;
                insert_twice(tx, &email).await
            }

            #[idempotent(scope = "unrecorded-sign-ups", shared_scope, cache = [201])]
            async fn sign_up_unrecorded(tx: Tx<$database>, State(runs): State<Runs>, email: String) -> Ended {
                runs.run().await;
                insert_twice(tx, &email).await
            }

            #[idempotent(scope = "card-charges", shared_scope, cache = [201, 402])]
            async fn charge(mut tx: Tx<$database>, State(runs): State<Runs>, card: String) -> Ended {
                let mut savepoint = tx.begin().await?;
                sqlx::query("INSERT INTO charges (card) VALUES ($1)").bind(&card).execute(&mut *savepoint).await?;
                runs.run().await;
                savepoint.rollback().await?;
                Err(Failed(StatusCode::PAYMENT_REQUIRED))
            }

            #[idempotent(scope = "bare-card-charges", shared_scope, cache = [201, 402])]
            async fn charge_without_savepoint(mut tx: Tx<$database>, State(runs): State<Runs>, card: String) -> Ended {
                sqlx::query("INSERT INTO charges (card) VALUES ($1)").bind(&card).execute(&mut *tx).await?;
                runs.run().await;
                Err(Failed(StatusCode::PAYMENT_REQUIRED))
            }

            #[idempotent(scope = "failing-charges", shared_scope, cache = [201, 402])]
            async fn fails(mut tx: Tx<$database>, State(runs): State<Runs>, card: String) -> Ended {
                sqlx::query("INSERT INTO charges (card) VALUES ($1)").bind(&card).execute(&mut *tx).await?;
                if runs.run().await == 1 {
                    sqlx::query("INSERT INTO charges (card) VALUES (NULL)").execute(&mut *tx).await?;
                }
                Ok(StatusCode::CREATED)
            }

            async fn serve(runs: &Runs) -> (Server, sqlx::Pool<$database>, $outlives) {
                let (store, pool, outlives) = $start.await;
                let app = Router::new()
                    .route("/sign-ups", post(sign_up))
                    .route("/bare", post(sign_up_without_savepoint))
                    .route("/unrecorded", post(sign_up_unrecorded))
                    .route("/charges", post(charge))
                    .route("/bare-charges", post(charge_without_savepoint))
                    .route("/fails", post(fails))
                    .with_state(runs.clone());
                (Server::start(app.layer(Registry::new(store).layer())).await, pool, outlives)
            }

            async fn count(pool: &sqlx::Pool<$database>, query: &'static str) -> i64 {
                sqlx::query_scalar(query).fetch_one(pool).await.expect("a number")
            }

            const ATTEMPTS: &str = "SELECT count(*) FROM attempts";
            const CHARGES: &str = "SELECT count(*) FROM charges";

            #[tokio::test]
            async fn unique_violation_in_a_savepoint_is_a_recorded_409() {
                let runs = Runs::free();
                let (server, pool, _outlives) = serve(&runs).await;
                assert_eq!(send(&server, "/sign-ups", "first").await.status, StatusCode::CREATED);
                for is_replay in [false, true] {
                    let taken = send(&server, "/sign-ups", "second").await;
                    assert_eq!((taken.status, taken.is_replay()), (StatusCode::CONFLICT, is_replay));
                }
                assert_eq!(runs.started(), 2);
                assert_eq!(count(&pool, ATTEMPTS).await, 2, "what is outside of the savepoint is kept");
            }

            #[tokio::test]
            async fn unique_violation_that_is_not_recorded_keeps_nothing() {
                let runs = Runs::free();
                let (server, pool, _outlives) = serve(&runs).await;
                assert_eq!(send(&server, "/unrecorded", "first").await.status, StatusCode::CREATED);
                for run in [2, 3] {
                    let taken = send(&server, "/unrecorded", "second").await;
                    assert_eq!((taken.status, taken.body.len(), runs.started()), (StatusCode::CONFLICT, 0, run));
                }
                assert_eq!(count(&pool, ATTEMPTS).await, 1);
            }

            #[tokio::test]
            async fn declined_card_in_a_savepoint_is_a_402_without_a_row() {
                let runs = Runs::free();
                let (server, pool, _outlives) = serve(&runs).await;
                for is_replay in [false, true] {
                    let declined = send(&server, "/charges", "k").await;
                    assert_eq!((declined.status, declined.is_replay()), (StatusCode::PAYMENT_REQUIRED, is_replay));
                }
                assert_eq!((runs.started(), count(&pool, CHARGES).await), (1, 0));
                assert_eq!(send(&server, "/bare-charges", "k").await.status, StatusCode::PAYMENT_REQUIRED);
                assert_eq!(count(&pool, CHARGES).await, 1, "without a savepoint the row is kept");
            }

            #[tokio::test]
            async fn error_passed_on_as_500_keeps_nothing_and_reruns() {
                let runs = Runs::free();
                let (server, pool, _outlives) = serve(&runs).await;
                assert_eq!(send(&server, "/fails", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
                assert_eq!(count(&pool, CHARGES).await, 0);
                assert_eq!(send(&server, "/fails", "k").await.status, StatusCode::CREATED);
                assert_eq!((count(&pool, CHARGES).await, runs.started()), (1, 2));
            }

            /// A unique violation without a savepoint, answered with a 409 of `cache`. Returns two responses and the
            /// number of rows that are kept.
            pub(super) async fn bare_violation() -> (Answer, Answer, i64) {
                let (server, pool, _outlives) = serve(&Runs::free()).await;
                assert_eq!(send(&server, "/bare", "first").await.status, StatusCode::CREATED);
                let taken = send(&server, "/bare", "second").await;
                (taken, send(&server, "/bare", "second").await, count(&pool, ATTEMPTS).await)
            }
        }
    };
}

async fn start_sqlite() -> (SqliteStore, sqlx::SqlitePool, SqliteFile) {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    file.execute(TABLES).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file.path());
    (store, sqlx::SqlitePool::connect_with(options).await.expect("the file opens"), file)
}

async fn start_postgres() -> (PostgresStore, sqlx::PgPool, Database) {
    postgres_beside(TABLES, 4).await
}

errors_over!(sqlite, sqlx::Sqlite, super::start_sqlite(), SqliteFile);
errors_over!(postgres, sqlx::Postgres, super::start_postgres(), Database);

#[tokio::test]
async fn violation_without_a_savepoint_is_recorded_over_sqlite() {
    let (taken, retry, attempts) = sqlite::bare_violation().await;
    assert_eq!((taken.status, retry.status, retry.is_replay()), (StatusCode::CONFLICT, StatusCode::CONFLICT, true));
    assert_eq!(attempts, 2);
}

#[tokio::test]
async fn violation_without_a_savepoint_fails_over_postgres() {
    let (taken, retry, attempts) = postgres::bare_violation().await;
    assert_eq!((taken.rejection().as_str(), retry.rejection().as_str()), ("transaction_failed", "transaction_failed"));
    assert_eq!(attempts, 1);
}
