//! A folder outside this repository with the unpacked archives, which cargo uses instead of the packages on crates.io.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{NAME, tar};
use crate::cargo;
use crate::step::{Failure, Step};
use crate::workspace::{Package, root};

/// The folder. It is removed together with everything that was built in it, which is some gigabytes.
pub(crate) struct Outside<'a> {
    folder: TempDir,
    packages: &'a [&'a Package],
}

impl<'a> Outside<'a> {
    pub(crate) fn unpack(packages: &'a [&'a Package]) -> Result<Self, Failure> {
        let folder = tempfile::tempdir().map_err(|error| Failure::of(NAME, error))?;
        if folder.path().starts_with(root()) {
            let found = format!("{} is in this repository: name another folder by TMPDIR", folder.path().display());
            return Err(Failure::of(NAME, found));
        }
        for package in packages {
            tar("--extract", package).within(folder.path()).answer()?;
        }
        Ok(Self { folder, packages })
    }

    /// Runs the packages' own tests and examples, the program, and the quick start as a reader would type it.
    pub(crate) fn test(&self) -> Result<(), Failure> {
        for (index, package) in self.packages.iter().enumerate() {
            let (label, known) = (package.label(), &self.packages[..index]);
            self.cargo(&format!("{label} outside, default features"), "test", &label, known)?.run()?;
            if package.features().next().is_some() {
                self.cargo(&format!("{label} outside, all features"), "test --all-features", &label, known)?.run()?;
            }
            if package.library().is_none() {
                self.cargo(&format!("{label} outside, started"), "run -- --version", &label, known)?.run()?;
            }
            if package.name == "idempotent-runtime" {
                self.quick_start(package, &self.packages[..=index])?;
            }
        }
        Ok(())
    }

    fn quick_start(&self, package: &Package, known: &[&Package]) -> Result<(), Failure> {
        let name = format!("the quick start of {}'s README, outside", package.label());
        let readme =
            fs::read_to_string(self.of(package).join("README.md")).map_err(|error| Failure::of(&name, error))?;
        let (dependencies, program) = block(&readme, "toml").zip(block(&readme, "rust,no_run")).ok_or_else(|| {
            Failure::of(&name, "there is none: a block `toml` with dependencies, and one `rust,no_run` with a program")
        })?;
        let head = "[package]\nname = \"quick-start\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n";
        self.write("quick-start/Cargo.toml", &format!("{head}{dependencies}"))?;
        self.write("quick-start/src/main.rs", program)?;
        self.cargo(&name, "build", "quick-start", known)?.run()
    }

    fn of(&self, package: &Package) -> PathBuf {
        self.folder.path().join(package.label())
    }

    /// Runs cargo in one of the folders, with the `known` packages in place of those on crates.io.
    fn cargo(&self, name: &str, arguments: &str, folder: &str, known: &[&Package]) -> Result<Step, Failure> {
        let patches = known.iter().map(|package| format!("{}.path = '{}'\n", package.name, self.of(package).display()));
        let patches: String = patches.collect();
        let config = format!("[profile.dev]\ndebug = false\n\n[patch.crates-io]\n{patches}");
        self.write(&format!("{folder}/.cargo/config.toml"), &config)?;
        let cargo = cargo(name, arguments).within(&self.folder.path().join(folder)).env("CARGO_INCREMENTAL", "0");
        Ok(cargo.env("CARGO_TARGET_DIR", self.folder.path().join("target")))
    }

    fn write(&self, path: &str, content: &str) -> Result<(), Failure> {
        let path = self.folder.path().join(path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, content));
        written.map_err(|error| Failure::of(NAME, format!("{}: {error}", path.display())))
    }
}

/// The first code block in this language on a page.
fn block<'a>(page: &'a str, language: &str) -> Option<&'a str> {
    Some(page.split_once(&format!("```{language}\n"))?.1.split_once("```")?.0)
}
