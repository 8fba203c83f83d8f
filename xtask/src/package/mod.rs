//! Checks what `cargo publish` would send, and that it builds and passes its tests outside this repository.

mod outside;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use self::outside::Outside;
use crate::cargo;
use crate::step::{Failure, Step};
use crate::workspace::{Package, Workspace, root, target};

const NAME: &str = "the packages";

/// The files that every package contains beside its sources.
const BESIDE_SOURCES: [&str; 6] =
    ["Cargo.lock", "Cargo.toml", "Cargo.toml.orig", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// The file that names the commit, if the sources come from a repository.
const COMMIT: &str = ".cargo_vcs_info.json";

/// Packages the crates, checks the contents of the archives, and tests them outside this repository.
pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    check(workspace)?;
    Outside::unpack(&workspace.published())?.test()
}

/// Packages the crates and checks the contents of the archives. Takes seconds.
pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    let packages = workspace.published();
    let names: Vec<_> = packages.iter().map(|package| format!("-p {}", package.name)).collect();
    // Changes that are not committed yet are checked too, although `cargo publish` requires a commit.
    let arguments = format!("package --no-verify --allow-dirty --quiet {}", names.join(" "));
    cargo(NAME, &arguments).within(root()).run()?;
    packages.into_iter().try_for_each(holds_its_sources_and_nothing_else)
}

fn holds_its_sources_and_nothing_else(package: &Package) -> Result<(), Failure> {
    let listing = tar("--list", package).answer()?;
    let listing = String::from_utf8_lossy(&listing);
    let folder = format!("{}/", package.label());
    let packed = listing.lines().map(|path| path.strip_prefix(&folder).unwrap_or(path));
    let packed: BTreeSet<_> = packed.filter(|path| *path != COMMIT).map(str::to_owned).collect();
    let mut wanted: BTreeSet<_> = BESIDE_SOURCES.map(str::to_owned).into();
    files(package.folder(), Path::new("src"), &mut wanted).map_err(|error| Failure::of(NAME, error))?;
    let missing = wanted.difference(&packed).map(|path| format!("{} lacks {path}", package.label()));
    let foreign = packed.difference(&wanted).map(|path| format!("{path} has no business in {}", package.label()));
    let faults: Vec<_> = missing.chain(foreign).collect();
    if faults.is_empty() {
        println!("{}: {} files", package.label(), packed.len());
        return Ok(());
    }
    Err(Failure::of(NAME, format!("{}\n  see `include` in {}/Cargo.toml", faults.join("\n  "), package.name)))
}

/// The files under a folder, with paths relative to `root`.
fn files(root: &Path, folder: &Path, found: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let path = folder.join(entry?.file_name());
        if root.join(&path).is_dir() {
            files(root, &path, found)?;
        } else {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn archive(package: &Package) -> PathBuf {
    target().join("package").join(format!("{}.crate", package.label()))
}

fn tar(operation: &str, package: &Package) -> Step {
    let archive = archive(package);
    Step::new(NAME, "tar", [OsStr::new(operation), "--gzip".as_ref(), "--file".as_ref(), archive.as_ref()])
}
