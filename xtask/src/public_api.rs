//! What users can name, one item a line, against the list of it that is kept in docs/public-api.
//!
//! The list is read from rustdoc's JSON, which a stable compiler writes when it is told that it may, and whose form
//! changes from release to release: `public-api` is locked to the one that reads it.

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

/// The compiler whose JSON the locked `public-api` reads.
const COMPILER: &str = "1.95.";

/// Says that this program stands in for rustdoc.
const AS_RUSTDOC: &str = "IDEMPOTENT_XTASK_AS_RUSTDOC";

/// What the compiler derives and no user can name.
const UNNAMEABLE: [&str; 3] =
    ["core::marker::Freeze", "core::marker::StructuralPartialEq", "core::marker::UnsafeUnpin"];

/// Compares with the lists.
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

/// For each library, the file with its list, and what the file must contain.
fn lists(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>, Failure> {
    document()?;
    let folder = root().join("docs/public-api");
    let libraries = workspace.published().into_iter().filter_map(|package| Some((package, package.library()?)));
    let list =
        |(package, library): (&Package, &str)| Ok((folder.join(format!("{}.txt", package.name)), items(library)?));
    libraries.map(list).collect()
}

/// The whole workspace at once: what it depends on is compiled with its features already.
fn document() -> Result<(), Failure> {
    let program = env::current_exe().map_err(|error| Failure::of(NAME, error))?;
    cargo(NAME, "doc --workspace --lib --no-deps --all-features --quiet")
        .within(root())
        .env("RUSTDOC", program)
        .env(AS_RUSTDOC, "1")
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .run()
}

/// Where cargo started this program as rustdoc: allows rustdoc, and nothing else, what it allows to nightly compilers. In
/// cargo's own environment the permission would make all dependencies be compiled once more.
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

/// The lines that went and the lines that came, in this order.
fn difference(listed: &str, found: &str) -> String {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (listed.lines().collect(), found.lines().collect());
    let went = old.difference(&new).map(|line| format!("- {line}\n"));
    went.chain(new.difference(&old).map(|line| format!("+ {line}\n"))).collect()
}
