//! A generated crate, and the time that cargo takes for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::application::{Kind, edited, files, package};

const BENCHES: &str = env!("CARGO_MANIFEST_DIR");

/// A crate in its own folder.
pub struct Project {
    kind: Kind,
    folder: PathBuf,
    edits: usize,
}

/// The time of one command.
#[derive(Clone, Copy)]
pub struct Took {
    /// The elapsed time.
    pub wall: f64,
    /// The processor time, on which other programs on the machine have less influence.
    pub processor: f64,
}

impl Project {
    /// Writes the crate below `parent`, with the dependency versions of the measurements themselves.
    pub fn write(kind: Kind, parent: &Path, runtime: &Path) -> anyhow::Result<Self> {
        let folder = parent.join(package(kind));
        fs::create_dir_all(folder.join("src"))?;
        for (path, text) in files(kind, runtime) {
            fs::write(folder.join(path), text)?;
        }
        fs::copy(Path::new(BENCHES).join("Cargo.lock"), folder.join("Cargo.lock"))?;
        Ok(Self { kind, folder, edits: 0 })
    }

    /// Changes the body of one handler.
    pub fn edit(&mut self) -> anyhow::Result<()> {
        // Counts from 1: the first edit must differ from the written file.
        self.edits += 1;
        let (path, text) = edited(self.kind, self.edits + 1_000);
        Ok(fs::write(self.folder.join(path), text)?)
    }

    /// Removes what was built of the crate itself, and keeps its dependencies.
    pub fn clean(&self) -> anyhow::Result<()> {
        for profile in ["dev", "release"] {
            self.run(&["clean", "--package", package(self.kind), "--profile", profile])?;
        }
        Ok(())
    }

    /// Runs cargo. It downloads something only if the command cannot run otherwise.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Took> {
        self.cargo(arguments, true).or_else(|_| self.cargo(arguments, false))
    }

    fn cargo(&self, arguments: &[&str], is_offline: bool) -> anyhow::Result<Took> {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).current_dir(&self.folder).env("CARGO_TARGET_DIR", target_folder());
        // A user's build is incremental unless the environment says otherwise.
        cargo.env_remove("CARGO_INCREMENTAL");
        cargo.args(is_offline.then_some("--offline")).stdin(Stdio::null());
        let (begun, processor) = (Instant::now(), processor_seconds()?);
        let output = cargo.output().context("cargo cannot be started")?;
        let took = Took { wall: begun.elapsed().as_secs_f64(), processor: processor_seconds()? - processor };
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo {} in {}:\n{errors}", arguments.join(" "), self.folder.display());
        Ok(took)
    }

    /// The size of the program in bytes. The program must be built.
    pub fn program_bytes(&self) -> anyhow::Result<u64> {
        let program = target_folder().join("release").join(package(self.kind));
        Ok(fs::metadata(&program).with_context(|| format!("{} is not built", program.display()))?.len())
    }
}

/// Separate from the other target folders, so that the dependencies are compiled once for all runs.
fn target_folder() -> PathBuf {
    Path::new(BENCHES).join("target/compile-time")
}

/// The processor time of all children that have ended, including their children.
fn processor_seconds() -> anyhow::Result<f64> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").context("the processor's time is read from /proc")?;
    // The name before the fields may contain spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).context("/proc/self/stat");
    Ok((ticks(13)? + ticks(14)?) / TICKS_A_SECOND)
}
