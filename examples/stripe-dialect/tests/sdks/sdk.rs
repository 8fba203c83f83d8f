//! Stripe's SDKs from npm and PyPI, at the versions of their lock files, each in a separate process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Output, Stdio};

use idempotent_tests::PATIENCE;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

pub(crate) const SECRET_KEY: &str = "sk_test_tea";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    Node,
    Python,
}

impl Sdk {
    /// Starts a client of the server at `host:port`.
    pub(crate) fn client_of(self, address: impl std::fmt::Display) -> Client {
        let mut driver = self.script("driver", address);
        let mut driver = driver.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the interpreter starts");
        let tell = driver.stdin.take().expect("a piped input");
        let told = BufReader::new(driver.stdout.take().expect("a piped output")).lines();
        Client { tell, told, _driver: driver }
    }

    /// Runs the script that the documentation shows to users.
    pub(crate) async fn pay(self, address: impl std::fmt::Display) -> Output {
        timeout(PATIENCE, self.script("pay", address).output()).await.expect("it ends").expect("the interpreter starts")
    }

    /// The class of the raised error in this SDK. `name` is the part of it that both SDKs share.
    pub(crate) fn error(self, name: &str) -> String {
        match self {
            Self::Node => format!("Stripe{name}Error"),
            Self::Python => format!("{name}Error"),
        }
    }

    fn script(self, name: &str, address: impl std::fmt::Display) -> Command {
        let folder = self.install();
        let (interpreter, file) = match self {
            Self::Node => (PathBuf::from("node"), format!("{name}.mjs")),
            Self::Python => (folder.join("venv/bin/python"), format!("{name}.py")),
        };
        let mut command = Command::new(interpreter);
        command.arg(folder.join(file)).arg(format!("http://{address}")).arg(SECRET_KEY);
        command.env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
        command
    }

    /// Installs the package and the scripts in one folder, once for each state of the lock file.
    fn install(self) -> PathBuf {
        let (name, lock_file, interpreter) = match self {
            Self::Node => ("node", "package-lock.json", "node"),
            Self::Python => ("python", "requirements.txt", "python3"),
        };
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdks").join(name);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stripe-sdks").join(name);
        fs::create_dir_all(&folder).expect("the target folder can be written");
        let alone = File::create(folder.join("lock")).expect("the target folder can be written");
        alone.lock().expect("a lock");

        for script in fs::read_dir(&scripts).expect("the scripts").map(|entry| entry.expect("an entry").path()) {
            let copy = folder.join(script.file_name().expect("a name"));
            // Replace only a script that has changed: another test may be about to run it.
            if script.is_file() && fs::read(&copy).ok() != fs::read(&script).ok() {
                fs::copy(&script, copy).expect("a copy");
            }
        }
        let version = run(process::Command::new(interpreter).arg("--version"));
        let wanted = version + &fs::read_to_string(scripts.join(lock_file)).expect("the lock file");
        let installed = folder.join("installed");
        if fs::read_to_string(&installed).ok().as_deref() != Some(&wanted) {
            match self {
                Self::Node => {
                    let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
                    run(process::Command::new("npm").args(arguments).current_dir(&folder));
                }
                Self::Python => {
                    let environment = folder.join("venv");
                    run(process::Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
                    let arguments = ["install", "--quiet", "--require-hashes", "--requirement", lock_file];
                    run(process::Command::new(environment.join("bin/pip")).args(arguments).current_dir(&folder));
                }
            }
            fs::write(&installed, wanted).expect("the target folder can be written");
        }
        folder
    }
}

fn run(command: &mut process::Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}{errors}");
    said.into_owned()
}

/// A process with an SDK, which executes one command at a time.
pub(crate) struct Client {
    tell: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
    _driver: Child,
}

impl Client {
    /// What the SDK did: `returned` or `raised`, with the details.
    pub(crate) async fn does(&mut self, what: Value) -> Value {
        self.tell.write_all(format!("{what}\n").as_bytes()).await.expect("the driver reads");
        let line = timeout(PATIENCE, self.told.next_line()).await.expect("the driver answers");
        serde_json::from_str(&line.expect("text").expect("the driver runs")).expect("JSON")
    }
}
