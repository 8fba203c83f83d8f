//! The attribute `#[idempotent]`; use it through the crate `idempotent-runtime`.
