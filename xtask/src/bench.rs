//! Runs the measurements, which are in a separate workspace.

use crate::prerequisites;
use crate::step::{Failure, Step};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/Cargo.toml");

/// `cargo xtask bench …`. The measurements' own program parses the options.
pub(crate) fn run(options: &[&str]) -> Result<(), Failure> {
    prerequisites::install_for_measurements()?;
    // One of the compared crates declares a newer compiler than it needs.
    let cargo = ["--release", "--quiet", "--ignore-rust-version", "--manifest-path", MANIFEST];
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--bins"].into_iter().chain(cargo);
    Step::new("building the measurements", &program, build).run()?;
    let bench = ["run", "--bin", "bench"].into_iter().chain(cargo).chain(["--"]).chain(options.iter().copied());
    Step::new("measuring", &program, bench).run()
}
