//! Stripe's own SDKs, from npm and PyPI, as clients of the API: what they send, what they retry, and how they interpret
//! the answers.

mod bench;
mod sdk;

use axum::Router;
use axum::routing::post;
use idempotent_runtime::{Registry, RejectedRequest, Rejection, rejection};
use idempotent_tests::{Fault, Runs, Server};
use serde_json::{Value, json};

use crate::bench::{Bench, Door, line_that_loses_the_first_answer};
use crate::sdk::Sdk;

macro_rules! with_each_sdk {
    ($($test:ident)*) => {
        mod node {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Sdk::Node).await;
            })*
        }
        mod python {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Sdk::Python).await;
            })*
        }
    };
}

with_each_sdk! {
    a_payment_intent_is_what_the_sdk_takes_it_for
    the_script_that_users_are_shown_pays_once
    a_replay_is_seen
    an_answer_that_is_lost_is_asked_for_again_and_paid_once
    a_reused_key_raises_the_idempotency_error
    a_key_in_use_is_retried_until_its_payment_is_there
    a_key_in_use_is_never_taken_for_a_success
    a_store_that_is_away_is_an_api_error_and_retried
    what_no_retry_can_help_is_asked_once
    a_declined_card_is_final
    a_wrong_parameter_is_named_and_its_key_stays_free
}

fn payment() -> Value {
    json!({
        "amount": 1999,
        "currency": "eur",
        "payment_method": "pm_card_visa",
        "confirm": true,
        "metadata": { "order": "6735 & more", "table": "7" },
    })
}

/// A payment with one attempt, unless `retries` says otherwise.
fn pay(payment: &Value, key: &str, retries: u32) -> Value {
    json!({ "create": payment, "key": key, "retries": retries })
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut payment = payment();
    payment[name] = value.into();
    payment
}

#[track_caller]
fn is_raised(outcome: &Value, class: &str, status: u16, code: &str) {
    let told = (&outcome["raised"], &outcome["status"], &outcome["code"]);
    assert_eq!(told, (&json!(class), &json!(status), &json!(code)), "{outcome}");
}

async fn a_payment_intent_is_what_the_sdk_takes_it_for(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let mut client = sdk.client_of(bench.server.address());
    let paid = client.does(pay(&payment(), "order-6735", 0)).await;
    let intent = &paid["returned"];
    assert_eq!((&intent["object"], &intent["status"]), (&json!("payment_intent"), &json!("succeeded")), "{paid}");
    assert_eq!((&intent["amount"], &intent["amount_received"]), (&json!(1999), &json!(1999)), "{paid}");
    assert_eq!(intent["metadata"], payment()["metadata"], "{paid}");
    assert_eq!((&paid["key"], &paid["replayed"]), (&json!("order-6735"), &json!(false)), "{paid}");
    assert_eq!(bench.door.seen(), [("order-6735".to_owned(), 200)], "the SDK sends the key without quotes");

    let found = client.does(json!({ "retrieve": intent["id"] })).await;
    assert_eq!(found["returned"], *intent);
    let missing = client.does(json!({ "retrieve": "pi_missing" })).await;
    is_raised(&missing, &sdk.error("InvalidRequest"), 404, "resource_missing");
}

async fn the_script_that_users_are_shown_pays_once(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let output = sdk.pay(bench.server.address()).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
    let [first, again] = lines.as_slice() else { panic!("{output:?}") };
    assert_eq!(
        (first[2..].join(" "), again[2..].join(" ")),
        ("succeeded, executed".into(), "succeeded, replayed".into())
    );
    assert_eq!(first[1], again[1], "{said}");
    assert_eq!(bench.payments().await, 1);
}

async fn a_replay_is_seen(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let mut client = sdk.client_of(bench.server.address());
    let first = client.does(pay(&payment(), "k", 0)).await;
    let again = client.does(pay(&payment(), "k", 0)).await;
    assert_eq!((&first["replayed"], &again["replayed"]), (&json!(false), &json!(true)), "{again}");
    assert_eq!(again["returned"], first["returned"]);
    assert_eq!((bench.runs.started(), bench.payments().await), (1, 1));
}

/// The SDK makes the key itself: one for each call, which it sends with each attempt.
async fn an_answer_that_is_lost_is_asked_for_again_and_paid_once(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let line = line_that_loses_the_first_answer(&bench.server).await;
    let paid = sdk.client_of(line).does(json!({ "create": payment() })).await;
    assert_eq!((&paid["returned"]["status"], &paid["replayed"]), (&json!("succeeded"), &json!(true)), "{paid}");
    let seen = bench.door.seen();
    let [(first, 200), (again, 200)] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(!first.is_empty() && first == again, "{seen:?}");
    assert_eq!((bench.runs.started(), bench.payments().await), (1, 1));
}

async fn a_reused_key_raises_the_idempotency_error(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let mut client = sdk.client_of(bench.server.address());
    client.does(pay(&payment(), "k", 2)).await;
    let reused = client.does(pay(&with("amount", 2999), "k", 2)).await;
    is_raised(&reused, &sdk.error("Idempotency"), 400, "key_reused");
    assert_eq!(reused["type"], "idempotency_error");
    assert_eq!(bench.door.seen().len(), 2, "it is not retried");
    assert_eq!(bench.payments().await, 1);
}

async fn a_key_in_use_is_retried_until_its_payment_is_there(sdk: Sdk) {
    let bench = Bench::new(Runs::held()).await;
    let mut first = sdk.client_of(bench.server.address());
    let mut second = sdk.client_of(bench.server.address());
    let payment = payment();
    let retried = async {
        bench.runs.until_started(1).await;
        second.does(pay(&payment, "k", 9)).await
    };
    let released = async {
        bench.door.until_seen("k", 409).await;
        bench.runs.let_finish(1);
    };
    let (first, second, ()) = tokio::join!(first.does(pay(&payment, "k", 0)), retried, released);
    assert_eq!(first["returned"], second["returned"]);
    assert_eq!((&first["replayed"], &second["replayed"]), (&json!(false), &json!(true)));
    assert_eq!((bench.runs.started(), bench.payments().await), (1, 1));
}

async fn a_key_in_use_is_never_taken_for_a_success(sdk: Sdk) {
    let bench = Bench::new(Runs::held()).await;
    let mut first = sdk.client_of(bench.server.address());
    let mut second = sdk.client_of(bench.server.address());
    let payment = payment();
    let rejected = async {
        bench.runs.until_started(1).await;
        let rejected = second.does(pay(&payment, "k", 0)).await;
        bench.runs.let_finish(1);
        rejected
    };
    let (first, rejected) = tokio::join!(first.does(pay(&payment, "k", 0)), rejected);
    is_raised(&rejected, &sdk.error("API"), 409, "idempotency_key_in_use");
    assert_eq!(rejected["type"], "idempotency_error");
    assert_eq!(first["returned"]["status"], "succeeded");
    assert_eq!(bench.payments().await, 1);
}

async fn a_store_that_is_away_is_an_api_error_and_retried(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let mut client = sdk.client_of(bench.server.address());
    bench.store.on_claim(Fault::Unreachable);
    let failed = client.does(pay(&payment(), "once", 0)).await;
    is_raised(&failed, &sdk.error("API"), 503, "store_unavailable");
    let back = async {
        bench.door.until_seen("k", 503).await;
        bench.store.on_claim(Fault::None);
    };
    let (paid, ()) = tokio::join!(client.does(pay(&payment(), "k", 9)), back);
    assert_eq!((&paid["returned"]["status"], &paid["replayed"]), (&json!("succeeded"), &json!(false)), "{paid}");
    assert_eq!((bench.runs.started(), bench.payments().await), (1, 1));
}

async fn what_no_retry_can_help_is_asked_once(sdk: Sdk) {
    for (rejection, code) in [
        (Rejection::OutcomeUnknown, "outcome_unknown"),
        (Rejection::TransactionFailed, "transaction_failed"),
        (Rejection::StepFailed, "step_failed"),
    ] {
        let door = Door::default();
        let reject = post(async move || rejection::stripe(rejection.clone(), &RejectedRequest::default()));
        let server = Server::start(door.guard(Router::new().route("/v1/payment_intents", reject))).await;
        let failed = sdk.client_of(server.address()).does(pay(&payment(), "k", 9)).await;
        is_raised(&failed, &sdk.error("API"), 500, code);
        assert_eq!(door.seen(), [("k".to_owned(), 500)]);
    }
}

async fn a_declined_card_is_final(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let mut client = sdk.client_of(bench.server.address());
    let payment = with("payment_method", "pm_card_chargeDeclined");
    let declined = client.does(pay(&payment, "k", 2)).await;
    is_raised(&declined, &sdk.error("Card"), 402, "card_declined");
    let again = client.does(pay(&payment, "k", 2)).await;
    assert_eq!((&declined["replayed"], &again["replayed"]), (&json!(false), &json!(true)));
    assert!(declined["payment_intent"].is_string(), "{declined}");
    assert_eq!(again["payment_intent"], declined["payment_intent"]);
    assert_eq!((bench.runs.started(), bench.payments().await), (1, 1));
}

async fn a_wrong_parameter_is_named_and_its_key_stays_free(sdk: Sdk) {
    let bench = Bench::new(Runs::free()).await;
    let mut client = sdk.client_of(bench.server.address());
    let wrong = client.does(pay(&with("amount", "a lot"), "k", 2)).await;
    is_raised(&wrong, &sdk.error("InvalidRequest"), 400, "parameter_invalid_integer");
    assert_eq!(wrong["param"], "amount");
    let corrected = client.does(pay(&payment(), "k", 2)).await;
    assert_eq!((&corrected["returned"]["status"], &corrected["replayed"]), (&json!("succeeded"), &json!(false)));
}

/// Shows why rejections must be rendered for these SDKs: this is how they interpret problem details.
#[tokio::test]
async fn stripe_node_takes_problem_details_for_a_success() {
    for sdk in [Sdk::Node, Sdk::Python] {
        let bench = Bench::with_registry(Runs::held(), Registry::new).await;
        let mut first = sdk.client_of(bench.server.address());
        let mut second = sdk.client_of(bench.server.address());
        let payment = payment();
        let rejected = async {
            bench.runs.until_started(1).await;
            let in_flight = second.does(pay(&payment, "k", 0)).await;
            let reused = second.does(pay(&with("amount", 2999), "k", 0)).await;
            bench.runs.let_finish(1);
            [(409, "in_flight", in_flight), (422, "key_reused", reused)]
        };
        let (_, rejected) = tokio::join!(first.does(pay(&payment, "k", 0)), rejected);
        for (status, code, outcome) in rejected {
            assert_eq!(outcome["status"], status, "{outcome}");
            match sdk {
                // A "payment intent", although the payment was rejected.
                Sdk::Node => {
                    assert_eq!(outcome["returned"]["code"], code, "{outcome}");
                    assert!(outcome["returned"]["id"].is_null(), "{outcome}");
                }
                // This SDK raises an error, but the same one for all rejections.
                Sdk::Python => {
                    assert_eq!((&outcome["raised"], &outcome["code"]), (&json!("APIError"), &Value::Null), "{outcome}");
                }
            }
        }
    }
}
