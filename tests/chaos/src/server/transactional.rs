//! The guarded handlers with a `Tx`, and the handlers that replace them where a guard is disabled.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::handler::Handler as _;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::{Idempotency, Tx, idempotent};
use sqlx::{Postgres, Sqlite};

use super::handlers::{Order, Running, execute};
use super::{App, Guard};

/// The header that says which version of the handler serves the request, as a load balancer decides in a rolling
/// deploy.
pub const VERSION: &str = "x-version";

/// The versions.
pub const VERSIONS: [&str; 2] = ["plain", "tx"];

/// Small enough for a small disk, and more than SQLite keeps in memory until COMMIT.
const BULK: i64 = 3_000_000;

/// How often a handler tries again on a full disk.
const TRIES: u32 = 40;

macro_rules! in_transaction {
    ($database:ty, $exactly_once:ident, $mixed:ident, $mixed_tx:ident, $router:ident) => {
        #[idempotent(scope = "exactly-once", shared_scope, cache = [201, 402])]
        async fn $exactly_once(
            mut tx: Tx<$database>,
            State(app): State<Arc<App>>,
            idempotency: Idempotency,
            Json(order): Json<Order>,
        ) -> Response {
            let running = match Running::begin(&app, &idempotency, &order, String::new()).await {
                Ok(running) => running,
                Err(response) => return response,
            };
            let effect = || {
                let effect = sqlx::query::<$database>("INSERT INTO effects (key, execution) VALUES ($1, $2)");
                effect.bind(running.key.clone()).bind(running.receipt.execution.clone())
            };
            if let Some(ending) = running.ending {
                // The key may be free as soon as the transaction has ended.
                app.ledger.end(&running.receipt.execution).await;
                if ending.effect_comes_first {
                    let _ = effect().execute(&mut *tx).await;
                }
                if let Some(statement) = ending.how.statement() {
                    let _ = sqlx::raw_sql(statement).execute(&mut *tx).await;
                } else {
                    let _ = tokio::time::timeout(Duration::ZERO, tx.begin()).await;
                }
                if !ending.effect_comes_first {
                    let _ = effect().execute(&mut *tx).await;
                }
                return running.done(&app).await;
            }
            if order.bulky {
                // On a full disk, this may end the transaction, which the handler does not notice.
                let _ =
                    sqlx::query("INSERT INTO bulk (bytes) VALUES (zeroblob($1))").bind(BULK).execute(&mut *tx).await;
            }
            let mut tries = if order.bulky { TRIES } else { 1 };
            while effect().execute(&mut *tx).await.is_err() {
                tries -= 1;
                if tries == 0 {
                    return running.failed(&app).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if order.bulky {
                let _ = sqlx::query("DELETE FROM bulk").execute(&mut *tx).await;
            }
            running.done(&app).await
        }

        // Written in full like the one above: the attribute needs each handler in full.
        #[idempotent(scope = "mixed", shared_scope, cache = [201, 402], lease = "3s")]
        async fn $mixed_tx(
            mut tx: Tx<$database>,
            State(app): State<Arc<App>>,
            idempotency: Idempotency,
            Json(order): Json<Order>,
        ) -> Response {
            let running = match Running::begin(&app, &idempotency, &order, String::new()).await {
                Ok(running) => running,
                Err(response) => return response,
            };
            let effect = sqlx::query("INSERT INTO effects (key, execution) VALUES ($1, $2)");
            let effect = effect.bind(&running.key).bind(&running.receipt.execution).execute(&mut *tx);
            match effect.await {
                Ok(_) => running.done(&app).await,
                Err(_) => running.failed(&app).await,
            }
        }

        /// Runs the version that the request names.
        async fn $mixed(State(app): State<Arc<App>>, request: Request) -> Response {
            let is_plain = request.headers().get(VERSION).is_some_and(|version| version == VERSIONS[0]);
            match (is_plain, app.without) {
                (true, Some(Guard::SharedClaims)) => mixed_plain_apart.call(request, app).await,
                (true, _) => mixed_plain.call(request, app).await,
                (false, _) => $mixed_tx.call(request, app).await,
            }
        }

        pub(super) fn $router() -> Router<Arc<App>> {
            Router::new().route("/exactly-once", post($exactly_once)).route("/mixed", post($mixed))
        }
    };
}

in_transaction!(Sqlite, exactly_once_in_sqlite, mixed_in_sqlite, mixed_tx_in_sqlite, sqlite_router);
in_transaction!(Postgres, exactly_once_in_postgres, mixed_in_postgres, mixed_tx_in_postgres, postgres_router);

#[idempotent(scope = "mixed", shared_scope, cache = [201, 402], lease = "3s")]
async fn mixed_plain(State(app): State<Arc<App>>, idempotency: Idempotency, Json(order): Json<Order>) -> Response {
    execute(&app, &idempotency, &order, String::new()).await
}

/// Its claims are in another store than those of the version with a `Tx`.
#[idempotent(scope = "mixed", shared_scope, cache = [201, 402], lease = "3s", store = "apart")]
async fn mixed_plain_apart(
    State(app): State<Arc<App>>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order, String::new()).await
}

#[idempotent(scope = "exactly-once", shared_scope, cache = [201, 402], lease = "3s")]
async fn exactly_once_without_transaction(
    State(app): State<Arc<App>>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order, String::new()).await
}

pub(super) fn router_without_transaction() -> Router<Arc<App>> {
    Router::new().route("/exactly-once", post(exactly_once_without_transaction))
}
