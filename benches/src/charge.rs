//! The handler of all measurements: it takes a small order and returns a small receipt.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The path of the handler that answers immediately.
pub const CHARGES: &str = "/charges";

/// The path of the handler that never answers.
pub const HELD: &str = "/held";

/// The body of a request.
#[derive(Serialize, Deserialize)]
pub struct Order {
    amount: u64,
    currency: String,
    customer: String,
    memo: String,
}

/// The body of a response.
#[derive(Serialize)]
pub struct Receipt {
    id: &'static str,
    object: &'static str,
    status: &'static str,
    livemode: bool,
    created: u64,
    amount: u64,
    currency: String,
    customer: String,
    memo: String,
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

/// How often the handler has run, in all contenders.
pub fn runs() -> usize {
    RUNS.load(Ordering::Relaxed)
}

/// What the handler does.
pub fn charge(order: Order) -> (StatusCode, Json<Receipt>) {
    RUNS.fetch_add(1, Ordering::Relaxed);
    let receipt = Receipt {
        id: "ch_3MmlLrLkdIwHu7ix0snN0B15",
        object: "charge",
        status: "succeeded",
        livemode: false,
        created: 1_679_090_539,
        amount: order.amount,
        currency: order.currency,
        customer: order.customer,
        memo: order.memo,
    };
    (StatusCode::CREATED, Json(receipt))
}

/// The JSON of an order of this many bytes.
///
/// # Panics
///
/// When `bytes` is less than the size of an order without a memo.
pub fn order(bytes: usize) -> Bytes {
    let order = |memo| Order { amount: 4_500, currency: "eur".into(), customer: "cus_9s6XKzkNRiz8i3".into(), memo };
    let json = |order| serde_json::to_vec(&order).expect("an order is plain data");
    let bare = json(order(String::new())).len();
    json(order("m".repeat(bytes.checked_sub(bare).expect("room for the fields")))).into()
}
