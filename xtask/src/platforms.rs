//! Checks that the crates compile for other systems, and with the oldest compiler that they declare.
//!
//! rustup installs the compilers and the standard libraries. Nothing is linked, so the compiled C code need not work.
//! For Windows, MinGW compiles it. For macOS, nothing compiles it, because Apple's compiler and headers are not free to
//! install.

use crate::prerequisites;
use crate::step::{Failure, Step};
use crate::workspace::{Package, Workspace, target};

const WINDOWS: &str = "x86_64-pc-windows-gnu";
const MACOS: &str = "aarch64-apple-darwin";

pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    prerequisites::install_for_windows()?;
    Step::new("the standard libraries of other systems", "rustup", ["target", "add", WINDOWS, MACOS]).run()?;
    for package in workspace.published() {
        for system in [WINDOWS, MACOS] {
            let name = format!("{} with all features for {system}", package.name);
            let step = Step::new(&name, "cargo", ["check", "--all-features", "--target", system, "-p", &package.name]);
            // A separate target folder, so that the checks do not wait for other builds.
            let step = step.env("CARGO_TARGET_DIR", target().join("platforms"));
            step.env("CC_aarch64_apple_darwin", "true").env("AR_aarch64_apple_darwin", "true").run()?;
        }
        declared(package)?;
    }
    Ok(())
}

/// Compiles the package with its default features and the oldest compiler that it declares.
fn declared(package: &Package) -> Result<(), Failure> {
    let version = package.rust_version.as_deref().unwrap_or_default();
    let install = ["toolchain", "install", version, "--profile", "minimal", "--no-self-update"];
    Step::new(&format!("Rust {version}"), "rustup", install).run()?;
    // Under `cargo xtask`, RUSTUP_TOOLCHAIN and CARGO name the newer compiler.
    let name = format!("{} by Rust {version}", package.name);
    let step = Step::new(&name, "rustup", ["run", version, "cargo", "check", "-p", &package.name]);
    step.env("CARGO_TARGET_DIR", target().join(format!("rust-{version}")))
        .without_env("CARGO")
        .without_env("RUSTC")
        .run()
}
