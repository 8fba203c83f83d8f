//! The soak test for longer than a suite can wait.

use std::num::NonZero;

use crate::cargo;
use crate::step::Failure;

/// What `cargo xtask chaos --soak` runs when it is told no length.
pub(crate) const MINUTES: u64 = 10;

/// The length that these arguments ask for, `None` when they ask for something else.
pub(crate) fn minutes(arguments: &[&str]) -> Option<u64> {
    match arguments {
        [] => Some(MINUTES),
        ["--minutes", minutes] => minutes.parse::<NonZero<u64>>().ok().map(NonZero::get),
        _ => None,
    }
}

pub(crate) fn soak(minutes: u64) -> Result<(), Failure> {
    cargo(&format!("a soak of {minutes} minutes"), "test -p idempotent-tests --test soak -- --nocapture")
        .env("IDEMPOTENT_SOAK_SECONDS", &minutes.saturating_mul(60).to_string())
        .run()
}
