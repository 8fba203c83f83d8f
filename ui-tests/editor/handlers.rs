//! What `cargo xtask editor` opens in an editor's language server: each plain handler, and the same one with the attribute.

use axum::Json;
use idempotent_runtime::idempotent;

/// What a customer orders.
#[derive(serde::Deserialize, Clone)]
pub struct Order {
    /// In cents.
    pub amount: u64,
    /// Such as `EUR`.
    pub currency: String,
}

impl Order {
    /// With the tax.
    pub fn total(&self) -> u64 {
        self.amount
    }
}

pub async fn whole_plain(Json(order): Json<Order>) -> String {
    let amount = order.amount;
    format!("{amount}")
}

#[idempotent(scope = "whole")]
pub async fn whole_annotated(Json(order): Json<Order>) -> String {
    let amount = order.amount;
    format!("{amount}")
}

pub async fn half_plain(Json(order): Json<Order>) -> String {
    let z = order.
}

#[idempotent(scope = "half")]
pub async fn half_annotated(Json(order): Json<Order>) -> String {
    let z = order.
}

#[idempotent(scope = "half-caller", caller = order.currency)]
pub async fn half_annotated_with_caller(Json(order): Json<Order>) -> String {
    let z = order.
}
