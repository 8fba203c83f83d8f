//! Whether the crates compile for other systems and by the oldest compiler that they declare.
//!
//! rustup gets the compilers and the standard libraries. Nothing is linked, so what is compiled in C need not be good for anything:
//! for Windows MinGW compiles it, for macOS, whose compiler and headers are not free to install, nothing does.

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
            // The folder of its own keeps the checks from waiting for other builds.
            let step = step.env("CARGO_TARGET_DIR", target().join("platforms"));
            step.env("CC_aarch64_apple_darwin", "true").env("AR_aarch64_apple_darwin", "true").run()?;
        }
        declared(package)?;
    }
    Ok(())
}

/// Compiles the package with its default features by the compiler that it declares.
fn declared(package: &Package) -> Result<(), Failure> {
    let version = package.rust_version.as_deref().unwrap_or_default();
    let install = ["toolchain", "install", version, "--profile", "minimal", "--no-self-update"];
    Step::new(&format!("Rust {version}"), "rustup", install).run()?;
    // Beneath `cargo xtask`, RUSTUP_TOOLCHAIN and CARGO name the newer compiler.
    let name = format!("{} by Rust {version}", package.name);
    let step = Step::new(&name, "rustup", ["run", version, "cargo", "check", "-p", &package.name]);
    step.env("CARGO_TARGET_DIR", target().join(format!("rust-{version}")))
        .without_env("CARGO")
        .without_env("RUSTC")
        .run()
}
