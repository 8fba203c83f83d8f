//! Installs what a run needs beside cargo: two components of the toolchain, a C compiler for the embedded SQLite, the
//! servers and the browser that the tests start, curl, openssl, the interpreters of the tested clients, and the program
//! that tests the alerts.

use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::step::{Failure, Step};

pub(crate) fn install() -> Result<(), Failure> {
    for (tool, component) in [("rustfmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !answers(tool) {
            Step::new(&format!("installing {component}"), "rustup", ["component", "add", component]).run()?;
        }
    }
    let mut packages = Vec::new();
    if !answers("cc") {
        packages.extend(["gcc", "libc6-dev"]);
    }
    if !answers("curl") {
        packages.push("curl");
    }
    if !answers("openssl") {
        packages.push("openssl");
    }
    if !answers("initdb") && !has_postgres_folder() {
        packages.push("postgresql");
    }
    if !answers("pgbouncer") {
        packages.push("pgbouncer");
    }
    if !answers("faketime") {
        packages.push("faketime");
    }
    if !answers("promtool") {
        packages.push("prometheus");
    }
    if !answers("redis-server") {
        packages.push("redis-server");
    }
    if !answers("node") {
        packages.push("nodejs");
    }
    if !answers("npm") {
        packages.push("npm");
    }
    if !makes_environments() {
        packages.extend(["python3", "python3-venv"]);
    }
    if !answers("chromedriver") || !answers("chromium") {
        packages.extend(["chromium", "chromium-driver"]);
    }
    install_packages(&packages)
}

/// Installs the C compiler for Windows.
pub(crate) fn install_for_windows() -> Result<(), Failure> {
    if answers("x86_64-w64-mingw32-gcc") { Ok(()) } else { install_packages(&["gcc-mingw-w64-x86-64"]) }
}

/// Installs the prerequisites, and the programs that count instructions and send requests.
pub(crate) fn install_for_measurements() -> Result<(), Failure> {
    install()?;
    let tools = ["valgrind", "wrk"];
    install_packages(&tools.into_iter().filter(|tool| !starts(tool)).collect::<Vec<_>>())
}

fn install_packages(packages: &[&str]) -> Result<(), Failure> {
    if packages.is_empty() {
        return Ok(());
    }
    Step::new("reading Debian's package lists", "apt-get", ["update"]).run()?;
    let arguments = ["install", "--yes", "--no-install-recommends"].into_iter().chain(packages.iter().copied());
    // The tests start their own servers: RUNLEVEL prevents the packages from starting one for the machine.
    Step::new(&format!("installing {}", packages.join(", ")), "apt-get", arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .run()
}

/// Whether the programs of PostgreSQL are installed. Debian keeps them in a separate folder for each version, which is
/// not in the search path.
fn has_postgres_folder() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path()).any(|version| Path::new(&version).join("bin/initdb").is_file())
}

/// Whether Python environments can be made. Debian keeps what `python3 -m venv` needs in a separate package.
fn makes_environments() -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", "import ensurepip, venv"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn answers(program: &str) -> bool {
    version(program).is_ok_and(|status| status.success())
}

/// Whether the program starts. wrk prints its version, and exits with a failure.
fn starts(program: &str) -> bool {
    version(program).is_ok()
}

fn version(program: &str) -> io::Result<ExitStatus> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status()
}
