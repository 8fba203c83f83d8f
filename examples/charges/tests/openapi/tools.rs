//! Installs the tools that read the document once, into the target folder. The lock files in this folder determine
//! their versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::FOLDER;

/// The linter's program.
pub(crate) fn redocly() -> Command {
    let lock = format!("{FOLDER}/package-lock.json");
    let folder = installed("redocly", &lock, |folder| {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(format!("{FOLDER}/{file}"), folder.join(file)).expect("a copy");
        }
        run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(folder));
    });
    Command::new(folder.join("node_modules/.bin/redocly"))
}

/// A program of one of the Python packages.
pub(crate) fn python(program: &str) -> Command {
    let lock = format!("{FOLDER}/requirements.txt");
    // Each test has an environment of its own: two of them may install at once.
    let folder = installed(&format!("python-{program}"), &lock, |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder));
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "--requirement", &lock]));
    });
    Command::new(folder.join("bin").join(program))
}

/// The folder of a tool. It contains the tool's lock file if the tool is installed completely.
fn installed(name: &str, lock: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (wanted, whole) = (fs::read(lock).expect("a lock file"), folder.join("installed"));
    if fs::read(&whole).ok().as_ref() != Some(&wanted) {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        install(&folder);
        fs::write(whole, wanted).expect("a mark");
    }
    folder
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{errors}", output.status);
}
