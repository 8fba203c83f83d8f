//! The nightly compiler, for what the stable one cannot do: a sanitizer, and the feature badges of docs.rs.

use std::process::{Command, Stdio};

use crate::step::Step;

pub(crate) fn is_there() -> bool {
    let mut ask = Command::new("cargo");
    ask.args(["+nightly", "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Otherwise the toolchain that runs this program would be used for the programs that it starts.
    ask.env_remove("RUSTUP_TOOLCHAIN").status().is_ok_and(|status| status.success())
}

pub(crate) fn cargo(name: &str, arguments: &str) -> Step {
    let step = Step::new(name, "cargo", ["+nightly"].into_iter().chain(arguments.split_whitespace()));
    step.without_env("RUSTUP_TOOLCHAIN").without_env("CARGO")
}
