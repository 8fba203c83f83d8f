//! The guarded handlers without a transaction: one for each guarantee. Only their policies differ.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use idempotent_runtime::{Idempotency, idempotent};
use serde::{Deserialize, Serialize};

use super::App;
use super::fault_injection::Ending;
use super::ledger::beginning;
use super::steps::Step;
use crate::history::Receipt;

/// The body of a request. It is the same in each retry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// How long the handler takes before its effect.
    pub millis: u64,
    /// Whether the handler blocks its thread meanwhile.
    pub blocks: bool,
    /// The outcome of the order.
    pub outcome: Outcome,
    /// The length of the response.
    pub padding: usize,
    /// How the transaction ends while the handler runs, if it does.
    pub ending: Option<Ending>,
    /// Whether the transaction writes so much that a full disk is noticed before the end.
    pub bulky: bool,
}

impl Order {
    /// An order that takes this many milliseconds and succeeds.
    pub const fn taking(millis: u64) -> Self {
        Self { millis, blocks: false, outcome: Outcome::Done, padding: 0, ending: None, bulky: false }
    }
}

/// The outcome of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// 201, with an effect.
    Done,
    /// 402, without an effect. It is recorded too.
    Declined,
    /// 500 without an effect in the first execution, which frees the key. After that as `Done`.
    FailsFirst,
}

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/at-least-once", post(at_least_once))
        .route("/at-most-once", post(at_most_once))
        .route("/short-ttl", post(short_ttl))
}

#[idempotent(scope = "at-least-once", cache = [201, 402], lease = "3s")]
async fn at_least_once(State(app): State<Arc<App>>, idempotency: Idempotency, Json(order): Json<Order>) -> Response {
    execute(&app, &idempotency, &order, String::new()).await
}

#[idempotent(scope = "at-most-once", cache = [201, 402], lease = "3s", after_crash = "reject")]
async fn at_most_once(State(app): State<Arc<App>>, idempotency: Idempotency, Json(order): Json<Order>) -> Response {
    execute(&app, &idempotency, &order, String::new()).await
}

#[idempotent(scope = "short-ttl", cache = [201, 402], lease = "3s", ttl = "3s")]
async fn short_ttl(State(app): State<Arc<App>>, idempotency: Idempotency, Json(order): Json<Order>) -> Response {
    execute(&app, &idempotency, &order, String::new()).await
}

/// Executes the order. The effect is written to the ledger, and so outside of any transaction.
pub(super) async fn execute(app: &App, idempotency: &Idempotency, order: &Order, origin: String) -> Response {
    let running = match Running::begin(app, idempotency, order, origin).await {
        Ok(running) => running,
        Err(response) => return response,
    };
    app.ledger.effect(&running.key, &running.receipt.execution).await;
    running.done(app).await
}

/// An execution before its effect.
pub(super) struct Running {
    pub(super) key: String,
    pub(super) receipt: Receipt,
    /// How the transaction ends.
    pub(super) ending: Option<Ending>,
}

impl Running {
    /// Runs the handler up to the effect. Returns a response if there must be no effect.
    pub(super) async fn begin(
        app: &App,
        idempotency: &Idempotency,
        order: &Order,
        origin: String,
    ) -> Result<Self, Response> {
        let key = idempotency.key().unwrap_or_default().to_owned();
        app.steps.reach(&key, Step::Claimed);
        let execution = beginning(app.next_execution(), &key, &app.name, idempotency.attempt());
        let number = app.ledger.begin(&execution).await;
        app.steps.reach(&key, Step::InHandler);
        let time = Duration::from_millis(order.millis);
        if order.blocks {
            app.blocked_thread.block(time).await;
        } else {
            tokio::time::sleep(time).await;
        }
        match order.outcome {
            Outcome::FailsFirst if number == 1 => {
                app.ledger.give_up(&execution.id).await;
                app.ledger.end(&execution.id).await;
                Err(StatusCode::INTERNAL_SERVER_ERROR.into_response())
            }
            Outcome::Declined => {
                app.ledger.end(&execution.id).await;
                Err(StatusCode::PAYMENT_REQUIRED.into_response())
            }
            Outcome::FailsFirst | Outcome::Done => {
                let padding = "x".repeat(order.padding);
                let receipt = Receipt { execution: execution.id, attempt: execution.attempt, origin, padding };
                Ok(Self { key, receipt, ending: order.ending.filter(|_| number == 1) })
            }
        }
    }

    /// The response if the effect failed.
    pub(super) async fn failed(self, app: &App) -> Response {
        app.ledger.end(&self.receipt.execution).await;
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }

    /// The response after the effect; 502 if the order says so.
    pub(super) async fn done(self, app: &App) -> Response {
        app.ledger.end(&self.receipt.execution).await;
        if self.ending.is_some_and(|ending| ending.status == 502) {
            app.ledger.give_up(&self.receipt.execution).await;
            return StatusCode::BAD_GATEWAY.into_response();
        }
        app.steps.reach(&self.key, Step::EffectDone);
        let body = serde_json::to_vec(&self.receipt).expect("a receipt serialises");
        let steps = Arc::clone(&app.steps);
        let length = body.len();
        // The engine reads the body after the handler has ended and before it records the response. The length of the
        // body is known, so the head of the response is sent after that.
        let body = stream::once(async move {
            steps.reach(&self.key, Step::BeforeRecord);
            Ok::<_, std::convert::Infallible>(body)
        });
        (
            StatusCode::CREATED,
            [(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, length.to_string())],
            Body::from_stream(body),
        )
            .into_response()
    }
}
