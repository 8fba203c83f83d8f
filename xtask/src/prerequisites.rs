//! What the run needs beside cargo: two components of the toolchain, and a C compiler for the embedded SQLite.

use std::process::{Command, Stdio};

use crate::step::{Failure, Step};

pub(crate) fn install() -> Result<(), Failure> {
    for (tool, component) in [("rustfmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !answers(tool, "--version") {
            Step::new(&format!("installing {component}"), "rustup", ["component", "add", component]).run()?;
        }
    }
    if !answers("cc", "--version") {
        Step::new("reading Debian's package lists", "apt-get", ["update"]).run()?;
        let packages = ["install", "--yes", "--no-install-recommends", "gcc", "libc6-dev"];
        Step::new("installing a C compiler", "apt-get", packages).env("DEBIAN_FRONTEND", "noninteractive").run()?;
    }
    Ok(())
}

fn answers(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
