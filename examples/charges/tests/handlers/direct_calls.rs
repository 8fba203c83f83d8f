//! Calls a handler as a function: only its body is tested. Nothing is claimed or recorded.

use axum::Json;
use axum::body::to_bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use charges::api::charges::{NewCharge, create_charge};
use charges::user::User;
use idempotent_runtime::Idempotency;
use idempotent_runtime::testing::idempotency;
use serde_json::Value;

use crate::{Books, order};

fn alice() -> User {
    User { name: "alice".to_owned() }
}

async fn json(response: Response) -> Value {
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
    serde_json::from_slice(&body).expect("JSON")
}

#[tokio::test]
async fn a_charge_over_the_limit_is_declined() {
    let books = Books::open().await;
    let declined =
        create_charge(State(books.app.clone()), alice(), Idempotency::default(), Json(order(100_001)).into());
    assert_eq!(declined.await.status(), StatusCode::PAYMENT_REQUIRED);
    assert_eq!(books.lines_and_times_asked().await, (0, 1));
}

#[tokio::test]
async fn second_attempt_asks_the_network_and_enters_one_charge() {
    let books = Books::open().await;
    let mut ids = Vec::new();
    for attempt in [1, 2] {
        let idempotency = idempotency("8e03978e", attempt);
        let charged = create_charge(State(books.app.clone()), alice(), idempotency, Json(order(1999)).into()).await;
        assert_eq!(charged.status(), StatusCode::CREATED);
        let charge = json(charged).await;
        assert_eq!(charge["attempt"], attempt);
        ids.push(charge["id"].clone());
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(books.lines_and_times_asked().await, (1, 2));
}

/// As if a reference were used twice: the network replays the first charge, and the ledger must not enter the second
/// one.
#[tokio::test]
async fn answer_of_the_network_for_another_charge_is_not_booked() {
    let books = Books::open().await;
    let charge = async |order: NewCharge| {
        create_charge(State(books.app.clone()), alice(), idempotency("8e03978e", 1), Json(order).into()).await.status()
    };
    assert_eq!(charge(order(1999)).await, StatusCode::CREATED);
    for other in [order(99_999), NewCharge { currency: "USD".to_owned(), ..order(1999) }, order(100_001)] {
        assert_eq!(charge(other).await, StatusCode::BAD_GATEWAY);
    }
    assert_eq!(charge(order(1999)).await, StatusCode::CREATED);
    assert_eq!(books.lines_and_times_asked().await, (1, 5));
}
