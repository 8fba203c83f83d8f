//! Handlers with steps, and one server for all of them.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join;
use http::StatusCode;
use idempotent_runtime::{Idempotency, Registry, StepError, StepErrorKind, Tx, idempotent};
use idempotent_tests::{Runs, Server};
use serde::{Deserialize, Serialize};
use sqlx::Sqlite;
use tower_http::catch_panic::CatchPanicLayer;

pub(super) type Result<T, E = Response> = std::result::Result<T, E>;

/// Two counters of executions: of the handler's step, and of the handler.
#[derive(Clone)]
pub(super) struct Executions {
    pub(super) step: Runs,
    pub(super) handler: Runs,
}

impl Executions {
    pub(super) fn free() -> Self {
        Self { step: Runs::free(), handler: Runs::free() }
    }
}

/// Returns the number of the step's execution. The handler's first answer is not recorded.
#[idempotent(scope = "orders")]
async fn fails_first(
    State(runs): State<Executions>,
    idempotency: Idempotency,
    _: String,
) -> Result<(StatusCode, String)> {
    let reserved = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    let first = runs.handler.run().await == 1;
    Ok((if first { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED }, format!("reservation {reserved}")))
}

#[idempotent(scope = "changed", shared_scope, cache = [201], fingerprint = none)]
async fn before_the_change(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

/// The same handler after its code was changed.
#[idempotent(scope = "changed", shared_scope, cache = [201], fingerprint = none)]
async fn after_the_change(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, StepError>(format!("run {}", runs.step.run().await)) });
    let error = run.await.expect_err("a number is no text");
    assert!(matches!(error.kind(), StepErrorKind::WrongType(_)), "{error:?}");
    Ok(error.to_string())
}

#[idempotent(scope = "declined")]
async fn step_that_fails_twice(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, StatusCode> {
    let reserve = async || match runs.step.run().await {
        1 | 2 => Err(StatusCode::PAYMENT_REQUIRED),
        run => Ok(run),
    };
    if idempotency.attempt() == 1 && runs.step.started() == 0 {
        assert_eq!(idempotency.step("reserve", &reserve).await, Err(StatusCode::PAYMENT_REQUIRED));
    }
    let run = idempotency.step("reserve", &reserve).await?;
    Ok(format!("run {run}"))
}

#[idempotent(scope = "twice")]
async fn the_same_name_twice(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = async || Ok::<_, Response>(runs.step.run().await);
    idempotency.step("reserve", run).await?;
    let number = idempotency.step("reserve", run).await?;
    Ok(format!("never: {number}"))
}

#[idempotent(scope = "names")]
async fn a_name_that_is_none(State(runs): State<Executions>, idempotency: Idempotency, name: String) -> Result<String> {
    let run = idempotency.step(&name, || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

/// Returns as many bytes of JSON as the request asks for.
#[idempotent(scope = "large-result", max_body = "1KiB")]
async fn a_large_result(State(runs): State<Executions>, idempotency: Idempotency, bytes: String) -> Result<String> {
    let length = bytes.parse::<usize>().expect("the test sends a number") - "\"\"".len();
    let run = async || {
        runs.step.run().await;
        Ok::<_, Response>("x".repeat(length))
    };
    Ok(idempotency.step("reserve", run).await?.len().to_string())
}

// The lease is so long that a test which waited for its end would time out.
#[idempotent(scope = "step-panics", lease = "1h")]
async fn panics_in_its_step(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async {
        let run = runs.step.run().await;
        assert!(run > 1, "the stock was reserved and then this happened");
        Ok::<_, Response>(run)
    });
    Ok(format!("run {}", run.await?))
}

/// Drops the first step, and then runs another one with the same name.
async fn gives_up(runs: &Executions, idempotency: &Idempotency) -> Result<String> {
    let begun = Runs::held();
    let hangs = idempotency.step("reserve", || async { Ok::<_, Response>(begun.run().await) });
    tokio::select! {
        biased;
        _ = hangs => unreachable!("it waits forever"),
        () = begun.until_started(1) => {}
    }
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(format!("run {run}"))
}

#[idempotent(scope = "gives-up", lease = "1h")]
async fn gives_a_step_up(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    gives_up(&runs, &idempotency).await
}

#[idempotent(scope = "gives-up-once", after_crash = "reject")]
async fn gives_a_step_up_and_must_not_rerun(
    State(runs): State<Executions>,
    idempotency: Idempotency,
) -> Result<String> {
    gives_up(&runs, &idempotency).await
}

#[idempotent(scope = "step-two")]
async fn two_steps(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let first = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    let second = idempotency.step("charge", || async { Ok::<_, Response>(runs.handler.run().await) }).await?;
    Ok(format!("{first} {second}"))
}

#[idempotent(scope = "at-once")]
async fn two_steps_at_once(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let step = |name| {
        let runs = runs.clone();
        idempotency.step(name, || async move { Ok::<_, Response>(runs.step.run().await) })
    };
    let (a, b) = join(step("a"), step("b")).await;
    Ok((a? + b?).to_string())
}

#[idempotent(scope = "long", lease = "300ms")]
async fn a_long_step(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

/// Counts a handler that has waited in vain for the step of another attempt.
#[idempotent(scope = "long-elsewhere", lease = "1s")]
async fn a_step_that_runs_elsewhere(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let step = idempotency.step("reserve", async || Ok::<_, StepError>(runs.step.run().await)).await;
    if step.as_ref().is_err_and(|error| matches!(error.kind(), StepErrorKind::StillRunning)) {
        runs.handler.run().await;
    }
    Ok(step?.to_string())
}

#[idempotent(scope = "in-transaction")]
async fn in_a_transaction(State(runs): State<Executions>, _tx: Tx<Sqlite>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

#[idempotent(scope = "unguarded", on_store_error = "run")]
async fn runs_without_a_store(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

/// A step with the result of which the path tells the kind. Answers the result in an attempt that reads it.
#[idempotent(scope = "lossy")]
async fn a_result_that_json_could_change(
    State(runs): State<Executions>,
    Path(kind): Path<String>,
    idempotency: Idempotency,
) -> Result<String> {
    runs.step.run().await;
    match kind.as_str() {
        "unit" => idempotency.step("result", async || Ok::<_, Response>(Some(()))).await.map(|it| format!("{it:?}")),
        "nested" => {
            let nested = vec![Some(None::<u8>)];
            idempotency.step("result", async || Ok::<_, Response>(nested)).await.map(|it| format!("{it:?}"))
        }
        "float" => idempotency.step("result", async || Ok::<_, Response>([f64::NAN])).await.map(|it| format!("{it:?}")),
        "some-float" => idempotency
            .step("result", async || Ok::<_, Response>(Some(f32::INFINITY)))
            .await
            .map(|it| format!("{it:?}")),
        _ => {
            let kept = (Some(1.5), None::<()>, (), Some("null".to_owned()), Ok::<(), u8>(()), vec![None, Some(7_u8)]);
            idempotency.step("result", async || Ok::<_, Response>(kept)).await.map(|it| format!("{it:?}"))
        }
    }
}

#[idempotent(scope = "unserialisable")]
async fn a_result_that_is_not_json(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    #[derive(Serialize, Deserialize)]
    struct Reservation {
        #[serde(skip_serializing)]
        number: usize,
    }
    let reserve = || async { Ok::<_, Response>(Reservation { number: runs.step.run().await }) };
    Ok(idempotency.step("reserve", reserve).await?.number.to_string())
}

pub(super) async fn serve(runs: &Executions, registry: &Registry) -> Server {
    let app = Router::new()
        .route("/orders", post(fails_first))
        .route("/before-the-change", post(before_the_change))
        .route("/after-the-change", post(after_the_change))
        .route("/declined", post(step_that_fails_twice))
        .route("/twice", post(the_same_name_twice))
        .route("/names", post(a_name_that_is_none))
        .route("/large", post(a_large_result))
        .route("/panics", post(panics_in_its_step))
        .route("/gives-up", post(gives_a_step_up))
        .route("/gives-up-once", post(gives_a_step_up_and_must_not_rerun))
        .route("/two", post(two_steps))
        .route("/at-once", post(two_steps_at_once))
        .route("/long", post(a_long_step))
        .route("/long-elsewhere", post(a_step_that_runs_elsewhere))
        .route("/in-transaction", post(in_a_transaction))
        .route("/unguarded", post(runs_without_a_store))
        .route("/unserialisable", post(a_result_that_is_not_json))
        .route("/lossy/{kind}", post(a_result_that_json_could_change))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(CatchPanicLayer::new());
    Server::start(app).await
}
