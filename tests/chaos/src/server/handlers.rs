//! The guarded handlers without a transaction: one for each guarantee, alike in all but their policy.

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

/// What a request asks for; the same in each retry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// How long the handler takes before its effect.
    pub millis: u64,
    /// Whether it blocks its thread meanwhile.
    pub blocks: bool,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The length of the response.
    pub padding: usize,
    /// How its transaction ends under it, if it does.
    pub ending: Option<Ending>,
    /// Whether its transaction writes so much that a full disk shows before the end.
    pub bulky: bool,
}

impl Order {
    /// One that takes so long and is done.
    pub const fn taking(millis: u64) -> Self {
        Self { millis, blocks: false, outcome: Outcome::Done, padding: 0, ending: None, bulky: false }
    }
}

/// What becomes of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// 201, with an effect.
    Done,
    /// 402, without an effect; it is recorded too.
    Declined,
    /// 500 without an effect in the first execution, which frees the key; then as `Done`.
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

/// The effect goes into the ledger, and so outside of any transaction.
pub(super) async fn execute(app: &App, idempotency: &Idempotency, order: &Order, origin: String) -> Response {
    let running = match Running::begin(app, idempotency, order, origin).await {
        Ok(running) => running,
        Err(response) => return response,
    };
    app.ledger.effect(&running.key, &running.receipt.execution).await;
    running.done(app).await
}

/// An execution whose effect is to come.
pub(super) struct Running {
    pub(super) key: String,
    pub(super) receipt: Receipt,
    /// How its transaction ends.
    pub(super) ending: Option<Ending>,
}

impl Running {
    /// Up to the effect; a response where there is to be none.
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

    /// The answer where the effect could not be made.
    pub(super) async fn failed(self, app: &App) -> Response {
        app.ledger.end(&self.receipt.execution).await;
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }

    /// The answer to what is done; or 502 where the order says so.
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
        // The engine reads the body when the handler has ended, and before it records. Its length is known, so that its head is sent
        // after that.
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
