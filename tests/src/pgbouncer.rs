//! A PgBouncer for the tests, in front of one of their servers. It runs in a temporary folder and ends with the
//! process.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::postgres::{PostgresServer, account, as_account};

/// A running PgBouncer that assigns server connections to clients for one transaction at a time.
pub struct PgBouncer {
    folder: PathBuf,
    _supervisor: Child,
}

/// Runs the program until the input closes. The input closes even if the test process is killed, which could not stop
/// the program itself.
const SUPERVISOR: &str = r#"
folder=$1; shift
"$@" </dev/null >>"$folder/output" 2>&1 &
child=$!
cat >/dev/null
kill -INT "$child"
wait "$child"
rm -rf "$folder"
"#;

impl PgBouncer {
    /// Starts a PgBouncer that opens at most `connections` server connections for each database.
    ///
    /// # Panics
    ///
    /// When PgBouncer is not installed.
    pub fn in_front_of(server: &PostgresServer, connections: u32) -> Self {
        Self::with_settings(server, connections, "")
    }

    /// The same with further lines of its settings.
    ///
    /// # Panics
    ///
    /// When PgBouncer is not installed.
    pub fn with_settings(server: &PostgresServer, connections: u32, more: &str) -> Self {
        let folder = TempDir::with_prefix("pgbouncer").expect("a temporary folder").keep();
        let settings = format!(
            "[databases]\n* = host={server} port=5432\n[pgbouncer]\nlisten_port = 5432\nunix_socket_dir = {folder}\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 500\n\
             ignore_startup_parameters = extra_float_digits\nlogfile = {folder}/log\npidfile = {folder}/pid\n{more}\n",
            server = server.folder().display(),
            folder = folder.display(),
        );
        // The database entry `any` gets its user from this setting.
        let settings = settings.replace("port=5432\n[", "port=5432 user=tester\n[");
        fs::write(folder.join("settings"), settings).expect("the folder is writable");
        let account = account();
        if let Some((_, user, group)) = &account {
            chown(&folder, Some(*user), Some(*group)).expect("root gives the folder away");
        }
        let command = as_account(account.as_ref(), &program());
        let mut supervisor = Command::new("sh");
        supervisor
            .args(["-c", SUPERVISOR, "supervisor"])
            .arg(&folder)
            .arg(command.get_program())
            .args(command.get_args());
        supervisor.arg(folder.join("settings"));
        let supervisor = supervisor.current_dir(&folder).stdin(Stdio::piped()).spawn().expect("sh starts");
        Self { folder, _supervisor: supervisor }
    }

    /// The folder of its socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The program. `TEST_PGBOUNCER` is the path of another version.
fn program() -> PathBuf {
    let here = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).is_file());
    let program = std::env::var_os("TEST_PGBOUNCER").map(PathBuf::from).or(here.map(PathBuf::from));
    program.expect("no `pgbouncer` here: install it with `apt-get install pgbouncer`")
}
