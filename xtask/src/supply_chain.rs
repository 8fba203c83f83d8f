//! Checks that no dependency has a known vulnerability, a licence that is not allowed, or a foreign source.

use std::process::{Command, Stdio};

use crate::cargo;
use crate::step::Failure;

const ADVISORIES: &str = "https://github.com/rustsec/advisory-db";

/// Uses the tools that are available. Building a tool takes minutes, which is worthwhile only for the advisories.
pub(crate) fn check() -> Result<(), Failure> {
    if can_be_had(ADVISORIES) {
        install("deny")?;
        install("audit")?;
        cargo("advisories, licences, bans and sources", "deny --all-features check").run()?;
        return cargo("advisories once more", "audit --deny warnings").run();
    }
    println!("\nNOT CHECKED: advisories, since {ADVISORIES} cannot be reached from here.");
    if is_installed("deny") {
        return cargo("licences, bans and sources", "deny --all-features check licenses bans sources").run();
    }
    println!("NOT CHECKED: licences, bans and sources, since cargo-deny is not installed.");
    Ok(())
}

fn can_be_had(repository: &str) -> bool {
    // A machine without network access may get no answer at all, not even a rejection.
    let mut ask = Command::new("timeout");
    ask.args(["20", "git", "ls-remote", "--exit-code", repository, "HEAD"]).env("GIT_TERMINAL_PROMPT", "0");
    ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn is_installed(tool: &str) -> bool {
    let mut ask = Command::new("cargo");
    ask.args([tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}

pub(crate) fn install(tool: &str) -> Result<(), Failure> {
    if is_installed(tool) {
        return Ok(());
    }
    cargo(&format!("installing cargo-{tool}"), &format!("install cargo-{tool} --locked --quiet")).run()
}
