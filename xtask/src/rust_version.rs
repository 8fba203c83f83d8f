//! Checks that the declared `rust-version` is true: no dependency of the default features needs a newer compiler.
//!
//! Clippy's `incompatible_msrv` checks what the project's own code uses of the standard library. No tool checks the
//! features of the language, so the only evidence for those is a run with the declared compiler itself.

use crate::step::{Failure, Step};
use crate::workspace::{Package, Workspace};

const NAME: &str = "the declared rust-version";

pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    println!("\n── {NAME} ──");
    let compiler = compiler()?;
    for package in workspace.published() {
        let name = &package.name;
        let declared = package.rust_version.as_deref().unwrap_or_default();
        if declared.is_empty() {
            return Err(Failure::of(NAME, format!("{name} declares none; write `rust-version.workspace = true`")));
        }
        let foreign = workspace.default_dependencies(package)?.into_iter().filter(|dependency| !dependency.is_ours());
        if let Some(newest) = foreign.max_by_key(|dependency| numbers(needed(dependency))) {
            let (dependency, version, needs) = (&newest.name, &newest.version, needed(newest));
            if numbers(needs) > numbers(declared) {
                let advice = format!("write `rust-version = \"{needs}\"`, or take another {dependency}");
                let found = format!("{name} declares {declared}, but {dependency} {version} needs {needs}: {advice}");
                return Err(Failure::of(NAME, found));
            }
            println!(
                "{name} declares {declared}; of what its default features need {dependency} {version} needs the most, {needs}."
            );
        }
        if !compiler.starts_with(&format!("{declared}.")) {
            println!("NOT SHOWN: that Rust {declared} compiles {name}, since this is Rust {compiler}.");
        }
    }
    Ok(())
}

fn needed(package: &Package) -> &str {
    package.rust_version.as_deref().unwrap_or("1.0")
}

fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map_while(|number| number.parse().ok()).collect()
}

/// The version of the compiler of this run, from a text such as `rustc 1.95.0 (…)`.
pub(crate) fn compiler() -> Result<String, Failure> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let answer = Step::new("the compiler's version", rustc, ["--version"]).answer()?;
    let words = String::from_utf8_lossy(&answer).split_whitespace().nth(1).map(str::to_owned);
    words.ok_or_else(|| Failure::of(NAME, "`rustc --version` names none"))
}
