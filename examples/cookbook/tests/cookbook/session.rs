//! Runs commands in a shell, as a reader does in a terminal.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use tempfile::TempDir;

use super::page::Command;

/// A shell in a temporary folder. The server that it starts listens on a free port.
pub(crate) struct Session {
    folder: TempDir,
    address: String,
    redis: String,
    database: String,
}

/// In this shell, `cargo run` starts the built program with `exec`, so the process id of the command is that of the
/// server, as with the real `cargo run`. The programs are not built again. A command after a kill begins only when the
/// killed server has released its port: a reader types it later, and `cargo` needs longer.
const BEGINNING: &str = r#"
trap 'builtin kill -9 $(jobs -p) 2>/dev/null' EXIT
kill() {
    builtin kill "$@" && wait "${@: -1}"
}
cargo() {
    case "$*" in
        "run -p cookbook") exec "$COOKBOOK" ;;
        "run -p cookbook --bin on-redis") exec "$ON_REDIS" ;;
        "run -p cookbook --bin on-postgres") exec "$ON_POSTGRES" ;;
        "run -p cookbook --bin swagger-and-metrics") exec "$SWAGGER_AND_METRICS" ;;
        *) echo "no such program: cargo $*" >&2; exit 2 ;;
    esac
}
"#;

/// Separates the outputs of two commands.
const MARK: &str = "\u{1e}";

impl Session {
    pub(crate) fn new(redis: &str, database: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("a bound listener has an address").to_string();
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder, address, redis: redis.to_owned(), database: database.to_owned() }
    }

    /// Runs the commands one after another, and returns what each of them prints.
    pub(crate) fn play(&self, commands: &[Command]) -> Vec<String> {
        let texts: Vec<_> =
            commands.iter().map(|command| command.text.replace("127.0.0.1:3000", &self.address)).collect();
        let script = format!("{BEGINNING}\n{}\n", texts.join(&format!("\nprintf '{MARK}'\n")));
        let path = self.folder.path().join("script.sh");
        fs::write(&path, script).expect("the folder can be written to");
        let output = self.bash(&path).output().expect("bash starts");
        print!("{}", String::from_utf8_lossy(&output.stderr));
        let last_server = fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
        print!("the server that was started last: {last_server}");
        let said = String::from_utf8(output.stdout).expect("answers in UTF-8");
        said.split(MARK).map(str::to_owned).collect()
    }

    fn bash(&self, script: &Path) -> Process {
        let mut bash = Process::new("bash");
        bash.arg(script).current_dir(self.folder.path()).stdin(Stdio::null());
        bash.env("COOKBOOK", env!("CARGO_BIN_EXE_cookbook"))
            .env("ON_REDIS", env!("CARGO_BIN_EXE_on-redis"))
            .env("ON_POSTGRES", env!("CARGO_BIN_EXE_on-postgres"))
            .env("SWAGGER_AND_METRICS", env!("CARGO_BIN_EXE_swagger-and-metrics"))
            .env("ADDRESS", &self.address)
            .env("REDIS_URL", &self.redis)
            .env("DATABASE_URL", &self.database);
        // A proxy of the machine would answer in place of the server.
        for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            bash.env_remove(proxy);
        }
        bash
    }
}
