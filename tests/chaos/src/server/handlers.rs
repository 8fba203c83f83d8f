//! The guarded handlers: one for each guarantee, alike in all but their policy.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use idempotent_runtime::{Idempotency, Tx, idempotent};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Sqlite};

use super::App;
use super::ledger::beginning;
use super::steps::Step;
use crate::history::Receipt;

/// What a request asks for; the same in each retry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// How long the handler takes before its effect.
    pub millis: u64,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The length of the response.
    pub padding: usize,
}

/// What becomes of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// 201, with an effect.
    Done,
    /// 402, without an effect, and recorded all the same.
    Declined,
    /// 500 without an effect in the first execution, which frees the key; then as `Done`.
    FailsFirst,
}

#[idempotent(scope = "at-least-once", cache = [201, 402], lease = "3s")]
pub(super) async fn at_least_once(
    State(app): State<Arc<App>>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order).await
}

#[idempotent(scope = "at-most-once", cache = [201, 402], lease = "3s", after_crash = "refuse")]
pub(super) async fn at_most_once(
    State(app): State<Arc<App>>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order).await
}

/// The effect goes into the ledger, and so outside of any transaction.
async fn execute(app: &App, idempotency: &Idempotency, order: &Order) -> Response {
    let running = match Running::begin(app, idempotency, order).await {
        Ok(running) => running,
        Err(response) => return response,
    };
    app.ledger.effect(&running.key, &running.receipt.execution).await;
    running.done(app)
}

macro_rules! exactly_once {
    ($handler:ident, $router:ident, $database:ty) => {
        #[idempotent(scope = "exactly-once", shared_scope, cache = [201, 402])]
        async fn $handler(
            mut tx: Tx<$database>,
            State(app): State<Arc<App>>,
            idempotency: Idempotency,
            Json(order): Json<Order>,
        ) -> Response {
            let running = match Running::begin(&app, &idempotency, &order).await {
                Ok(running) => running,
                Err(response) => return response,
            };
            let effect = sqlx::query("INSERT INTO effects (key, execution) VALUES ($1, $2)");
            let effect = effect.bind(&running.key).bind(&running.receipt.execution).execute(&mut *tx).await;
            match effect {
                Ok(_) => running.done(&app),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }

        pub(super) fn $router() -> Router<Arc<App>> {
            Router::new().route("/exactly-once", post($handler))
        }
    };
}

exactly_once!(exactly_once_in_sqlite, exactly_once_in_sqlite_router, Sqlite);
exactly_once!(exactly_once_in_postgres, exactly_once_in_postgres_router, Postgres);

#[idempotent(scope = "exactly-once", shared_scope, cache = [201, 402], lease = "3s")]
async fn exactly_once_without_transaction(
    State(app): State<Arc<App>>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order).await
}

pub(super) fn exactly_once_without_transaction_router() -> Router<Arc<App>> {
    Router::new().route("/exactly-once", post(exactly_once_without_transaction))
}

/// An execution whose effect is to come.
struct Running {
    key: String,
    receipt: Receipt,
}

impl Running {
    /// Up to the effect; a response where there is to be none.
    async fn begin(app: &App, idempotency: &Idempotency, order: &Order) -> Result<Self, Response> {
        let key = idempotency.key().unwrap_or_default().to_owned();
        app.steps.reach(&key, Step::Claimed);
        let execution = beginning(app.next_execution(), &key, &app.name, idempotency.attempt());
        let number = app.ledger.begin(&execution).await;
        app.steps.reach(&key, Step::InHandler);
        tokio::time::sleep(Duration::from_millis(order.millis)).await;
        match order.outcome {
            Outcome::FailsFirst if number == 1 => {
                app.ledger.give_up(&execution.id).await;
                Err(StatusCode::INTERNAL_SERVER_ERROR.into_response())
            }
            Outcome::Declined => Err(StatusCode::PAYMENT_REQUIRED.into_response()),
            Outcome::FailsFirst | Outcome::Done => {
                let padding = "x".repeat(order.padding);
                let receipt = Receipt { execution: execution.id, attempt: execution.attempt, padding };
                Ok(Self { key, receipt })
            }
        }
    }

    fn done(self, app: &App) -> Response {
        app.steps.reach(&self.key, Step::EffectDone);
        let body = serde_json::to_vec(&self.receipt).expect("a receipt serialises");
        let steps = Arc::clone(&app.steps);
        // The engine reads the body when the handler has ended, and before it records.
        let body = stream::once(async move {
            steps.reach(&self.key, Step::BeforeRecord);
            Ok::<_, std::convert::Infallible>(body)
        });
        (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
    }
}
