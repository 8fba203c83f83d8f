//! The attribute does not wait for attributes that only the compiler reads, and they stay at their places.

#![deny(warnings)]

use idempotent_runtime::idempotent;

#[rustfmt::skip]
#[idempotent]
#[doc = "Charges."]
#[expect(unused_variables)]
#[clippy::cognitive_complexity = "1"]
#[deprecated(note = "use the other one")]
#[must_use]
#[cold]
pub async fn create_charge(body: String) {}

#[cfg_attr(all(), axum::debug_handler)]
#[idempotent]
#[cfg_attr(any(), no_such_attribute)]
#[cfg_attr(all(), tracing::instrument(skip(body)))]
pub async fn refund(body: String) -> String {
    body
}

fn main() {
    assert_eq!(idempotent_runtime::policies().count(), 2);
}
