use idempotent_runtime::idempotent;

#[idempotent]
pub use std::fmt;

fn main() {}
