//! The nightly compiler, for what the stable one does not do: a sanitizer, and the badges of docs.rs.

use std::process::{Command, Stdio};

use crate::step::Step;

pub(crate) fn is_there() -> bool {
    let mut ask = Command::new("cargo");
    ask.args(["+nightly", "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // The toolchain that runs this would be forced on what it starts.
    ask.env_remove("RUSTUP_TOOLCHAIN").status().is_ok_and(|status| status.success())
}

pub(crate) fn cargo(name: &str, arguments: &str) -> Step {
    let step = Step::new(name, "cargo", ["+nightly"].into_iter().chain(arguments.split_whitespace()));
    step.without_env("RUSTUP_TOOLCHAIN").without_env("CARGO")
}
