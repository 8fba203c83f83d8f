//! Compares the items that users can name, one on each line, with the lists in docs/public-api.
//!
//! The items are read from rustdoc's JSON. A stable compiler writes it if RUSTC_BOOTSTRAP allows it, and its format
//! changes with each release: the locked version of `public-api` reads the format of one release.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::cargo;
use crate::rust_version;
use crate::step::Failure;
use crate::workspace::{Package, Workspace, root, target};

const NAME: &str = "the public interface";

/// The compiler whose JSON the locked `public-api` can read.
const COMPILER: &str = "1.95.";

/// Set if cargo starts this program in place of rustdoc.
const AS_RUSTDOC: &str = "IDEMPOTENT_XTASK_AS_RUSTDOC";

/// Items that the compiler derives and that users cannot name.
const UNNAMEABLE: [&str; 3] =
    ["core::marker::Freeze", "core::marker::StructuralPartialEq", "core::marker::UnsafeUnpin"];

/// Compares the items with the lists.
pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    let compiler = rust_version::compiler()?;
    if !compiler.starts_with(COMPILER) {
        println!("\nNOT CHECKED: {NAME}, whose list is of Rust {COMPILER}x, since this is Rust {compiler}.");
        return Ok(());
    }
    for (path, found) in lists(workspace)? {
        let difference = difference(&fs::read_to_string(&path).unwrap_or_default(), &found);
        if !difference.is_empty() {
            let advice = "If it is meant to be so, write it there with `cargo xtask public-api`, and into CHANGELOG.md what it \
                          means to users: a line that goes, or comes back changed, breaks their code.";
            let found = format!("it is not what {} says:\n\n{difference}\n  {advice}", path.display());
            return Err(Failure::of(NAME, found));
        }
    }
    Ok(())
}

/// Writes the lists.
pub(crate) fn write(workspace: &Workspace) -> Result<(), Failure> {
    let compiler = rust_version::compiler()?;
    if !compiler.starts_with(COMPILER) {
        let found = format!("the list is of Rust {COMPILER}x, and this is Rust {compiler}");
        return Err(Failure::of(NAME, format!("{found}: take that one, or another `public-api` in Cargo.toml")));
    }
    for (path, found) in lists(workspace)? {
        fs::write(&path, found).map_err(|error| Failure::of(NAME, format!("{}: {error}", path.display())))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The file and the required contents of the list of each library.
fn lists(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>, Failure> {
    document()?;
    let folder = root().join("docs/public-api");
    let libraries = workspace.published().into_iter().filter_map(|package| Some((package, package.library()?)));
    let list =
        |(package, library): (&Package, &str)| Ok((folder.join(format!("{}.txt", package.name)), items(library)?));
    libraries.map(list).collect()
}

/// Documents the whole workspace at once, because its dependencies are already compiled with these features.
fn document() -> Result<(), Failure> {
    let program = env::current_exe().map_err(|error| Failure::of(NAME, error))?;
    cargo(NAME, "doc --workspace --lib --no-deps --all-features --quiet")
        .within(root())
        .env("RUSTDOC", program)
        .env(AS_RUSTDOC, "1")
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .run()
}

/// If cargo started this program as rustdoc: runs rustdoc with nightly features allowed. Only rustdoc gets the
/// permission: in cargo's own environment, it would cause all dependencies to be compiled again.
pub(crate) fn instead_of_rustdoc() -> Option<ExitCode> {
    env::var_os(AS_RUSTDOC)?;
    let error = Command::new("rustdoc").args(env::args_os().skip(1)).env("RUSTC_BOOTSTRAP", "1").exec();
    eprintln!("rustdoc could not be started: {error}");
    Some(ExitCode::FAILURE)
}

fn items(library: &str) -> Result<String, Failure> {
    let json = target().join("doc").join(format!("{library}.json"));
    let builder = public_api::Builder::from_rustdoc_json(&json).omit_blanket_impls(true).omit_auto_trait_impls(true);
    let read = builder.build().map_err(|error| Failure::of(NAME, format!("{}: {error}", json.display())))?;
    let lines = read.items().map(|item| format!("{item}\n"));
    Ok(lines.filter(|line| !UNNAMEABLE.iter().any(|name| line.contains(name))).collect())
}

/// The removed lines, and then the added lines.
fn difference(listed: &str, found: &str) -> String {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (listed.lines().collect(), found.lines().collect());
    let went = old.difference(&new).map(|line| format!("- {line}\n"));
    went.chain(new.difference(&old).map(|line| format!("+ {line}\n"))).collect()
}
