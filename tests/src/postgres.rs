//! A PostgreSQL server for the tests: in a temporary folder, on a socket. It ends with the process.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tempfile::TempDir;

use crate::pgbouncer::PgBouncer;
use crate::redis::free_port;
use crate::{Proxy, Tmpfs, eventually};

/// The superuser of the server.
const USER: &str = "tester";

/// PostgreSQL's default port, which is part of the name of its socket.
const PORT: u16 = 5432;

/// A running server.
pub struct PostgresServer {
    folder: PathBuf,
    port: u16,
    /// Stops the server and removes its folder when its input closes, however this process ends.
    _supervisor: Child,
    /// Dropped after the server, because a running server keeps the disk busy.
    disk: Option<Tmpfs>,
}

/// Which part of the server is on a small disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSmallDisk {
    /// The tables and their indexes.
    Tables,
    /// The write-ahead log, without which PostgreSQL cannot write anything.
    LogOfWrites,
}

/// Runs the server until the input closes. The input closes even if the test process is killed, which could not stop
/// the server itself.
const SUPERVISOR: &str = r#"
folder=$1; shift
"$@" </dev/null >>"$folder/log" 2>&1 &
cat >/dev/null
if [ -e "$folder/data/postmaster.pid" ]; then
    postmaster=$(head -n 1 "$folder/data/postmaster.pid")
    # A test may have failed while the server was paused.
    kill -CONT $(ps -o pid= --ppid "$postmaster") "$postmaster"
    kill -INT "$postmaster"
fi
while [ -e "$folder/data/postmaster.pid" ]; do sleep 0.05; done
# A disk of its own may still be mounted there: it takes its folder along.
rm -rf "$folder" 2>/dev/null
"#;

impl PostgresServer {
    /// One server for all tests of a process.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceLock<PostgresServer> = OnceLock::new();
        let server = SHARED.get_or_init(|| Self::launch(&[], None));
        server.until_ready().await;
        server
    }

    /// A server for one test, with these settings, such as `max_connections=20`.
    pub async fn start(settings: &[&str]) -> Self {
        let server = Self::launch(settings, None);
        server.until_ready().await;
        server
    }

    /// A server for one test that also listens on a port of `127.0.0.1`.
    pub async fn start_on_loopback(settings: &[&str]) -> Self {
        let port = format!("port={}", free_port());
        let server = Self::launch(&[&["listen_addresses=127.0.0.1", &port], settings].concat(), None);
        server.until_ready().await;
        server
    }

    /// A server for one test, with one part on a separate disk of `mebibytes` MiB.
    pub async fn start_on_small_disk(part: OnSmallDisk, mebibytes: u32) -> Self {
        let server = Self::launch(&["min_wal_size=2MB", "max_wal_size=8MB"], Some((part, mebibytes)));
        server.until_ready().await;
        server
    }

    /// # Panics
    ///
    /// When PostgreSQL is not installed, or does not start.
    fn launch(settings: &[&str], small_disk: Option<(OnSmallDisk, u32)>) -> Self {
        let folder = TempDir::with_prefix("pg").expect("a temporary folder").keep();
        let account = account();
        if let Some((_, user, group)) = &account {
            chown(&folder, Some(*user), Some(*group)).expect("root gives the folder away");
        }
        let data = folder.join("data");
        let log = folder.join("log-of-writes");
        let disk = small_disk.map(|(part, mebibytes)| {
            let path = if part == OnSmallDisk::Tables { &data } else { &log };
            let disk = Tmpfs::mount_at(path, mebibytes);
            if let Some((_, user, group)) = &account {
                chown(path, Some(*user), Some(*group)).expect("root gives the folder away");
            }
            disk
        });
        let mut initdb = as_account(account.as_ref(), &program("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username", USER]);
        if disk.is_some() {
            initdb.arg("--wal-segsize=1").arg("--waldir").arg(&log);
        }
        initdb.arg("--pgdata");
        let output = initdb.arg(&data).current_dir(&folder).output().expect("initdb starts");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        Self::run(folder, settings, disk)
    }

    /// Starts a server with the files in the folder.
    fn run(folder: PathBuf, settings: &[&str], disk: Option<Tmpfs>) -> Self {
        let (account, data) = (account(), folder.join("data"));
        let server = as_account(account.as_ref(), &program("postgres"));
        let mut supervisor = Command::new("sh");
        supervisor
            .args(["-c", SUPERVISOR, "supervisor"])
            .arg(&folder)
            .arg(server.get_program())
            .args(server.get_args());
        supervisor.arg("-D").arg(&data).arg("-k").arg(&folder);
        // The data is thrown away after the test: no test depends on what is left after a loss of power.
        for setting in ["listen_addresses=", "fsync=off", "max_connections=200"].iter().chain(settings) {
            supervisor.args(["-c", setting]);
        }
        let supervisor = supervisor.current_dir(&folder).stdin(Stdio::piped()).spawn().expect("sh starts");
        let port = settings.iter().find_map(|setting| setting.strip_prefix("port=")?.parse().ok()).unwrap_or(PORT);
        Self { folder, port, _supervisor: supervisor, disk }
    }

    /// A standby that replicates this server and can take its place. This server must listen on loopback.
    ///
    /// # Panics
    ///
    /// When it cannot be copied.
    pub async fn standby(&self) -> Self {
        let folder = TempDir::with_prefix("pg").expect("a temporary folder").keep();
        if let Some((_, user, group)) = account() {
            chown(&folder, Some(user), Some(group)).expect("root gives the folder away");
        }
        self.copy_to(&folder.join("data")).await;
        let port = format!("port={}", free_port());
        let standby = Self::run(folder, &["listen_addresses=127.0.0.1", &port], None);
        standby.until_ready().await;
        standby
    }

    /// Copies the server's files as `pg_basebackup` does. Not every package contains that program.
    async fn copy_to(&self, data: &Path) {
        let mut connection = self.connect("postgres").await;
        let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::integer")
            .fetch_one(&mut connection)
            .await
            .expect("the server answers");
        let (start, stop) = if version >= 150_000 {
            ("SELECT pg_backup_start('standby', true)::text", "SELECT labelfile FROM pg_backup_stop(false)")
        } else {
            (
                "SELECT pg_start_backup('standby', true, false)::text",
                "SELECT labelfile FROM pg_stop_backup(false, false)",
            )
        };
        let begun = sqlx::query_scalar::<_, String>(start).fetch_one(&mut connection).await;
        begun.expect("the backup begins");
        let mut copy = as_account(account().as_ref(), Path::new("cp"));
        copy.arg("-Rp").arg(self.folder.join("data")).arg(data).current_dir(&self.folder);
        let copied = tokio::task::spawn_blocking(move || copy.output()).await.expect("the task runs");
        let copied = copied.expect("cp starts");
        let label = sqlx::query_scalar::<_, String>(stop).fetch_one(&mut connection).await;
        let label_file = data.join("backup_label");
        fs::write(&label_file, label.expect("the backup ends")).expect("the file is written");
        if let Some((_, user, group)) = account() {
            chown(&label_file, Some(user), Some(group)).expect("root gives the file away");
        }
        // Files that vanish while they are copied are not needed in the copy.
        assert!(data.join("global/pg_control").is_file(), "{}", String::from_utf8_lossy(&copied.stderr));
        fs::remove_file(data.join("postmaster.pid")).expect("it was copied");
        let primary = format!("primary_conninfo = 'host={} port={} user={USER}'\n", self.folder.display(), self.port);
        let mut settings = fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"));
        let written = settings.as_mut().map(|file| std::io::Write::write_all(file, primary.as_bytes()));
        written.expect("the file is there").expect("the setting is written");
        fs::write(data.join("standby.signal"), "").expect("the file is written");
    }

    /// Promotes this standby: it stops replicating and accepts writes.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn promote(&self) {
        let promoted =
            sqlx::query_scalar::<_, bool>("SELECT pg_promote()").fetch_one(&mut self.connect("postgres").await).await;
        assert!(promoted.expect("the server answers"), "it is promoted");
    }

    /// Demotes this primary to a standby, which accepts only reads.
    ///
    /// # Panics
    ///
    /// When it does not start again.
    pub async fn demote(&self) {
        fs::write(self.folder.join("data/standby.signal"), "").expect("the file is written");
        self.restart_in_order().await;
    }

    /// The address as `host:port`, if the server listens on loopback.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The small disk with a part of the server's files.
    ///
    /// # Panics
    ///
    /// When the server was not started on a small disk.
    pub fn disk(&self) -> &Tmpfs {
        self.disk.as_ref().expect("it was started on a small disk")
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    async fn until_ready(&self) {
        let options = self.options("postgres");
        let connect = async || options.connect().await.map(drop).map_err(|error| error.to_string());
        eventually(connect, Result::is_ok).await.expect("awaited");
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new().socket(&self.folder).port(self.port).username(USER).database(database)
    }

    /// A connection to the database of this name.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn connect(&self, database: &str) -> PgConnection {
        self.options(database).connect().await.expect("the server answers")
    }

    /// A new, empty database.
    ///
    /// # Panics
    ///
    /// When the database cannot be made.
    pub async fn database(&self) -> Database {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut connection = self.connect("postgres").await;
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(create).execute(&mut connection).await.expect("the database is made");
        connection.close().await.expect("the connection closes");
        Database { options: self.options(&name), name, folder: self.folder.clone() }
    }

    /// Closes every connection at once and restarts the server.
    ///
    /// # Panics
    ///
    /// When `pg_ctl` fails.
    pub async fn restart(&self) {
        self.restart_by("--mode=immediate").await;
    }

    /// Shuts down in order, so that transactions are rolled back cleanly, and starts the server again.
    ///
    /// # Panics
    ///
    /// When `pg_ctl` fails.
    pub async fn restart_in_order(&self) {
        self.restart_by("--mode=fast").await;
    }

    async fn restart_by(&self, mode: &str) {
        let mut restart = as_account(account().as_ref(), &program("pg_ctl"));
        restart.args(["restart", mode, "--silent", "-D"]).arg(self.folder.join("data"));
        restart.arg("-l").arg(self.folder.join("log-of-restart")).current_dir(&self.folder);
        restart.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let restarted = tokio::task::spawn_blocking(move || restart.status()).await.expect("the task runs");
        assert!(restarted.expect("pg_ctl starts").success(), "the server restarts");
        self.until_ready().await;
    }

    /// Sends a signal, such as `STOP`, to every process of the server.
    ///
    /// # Panics
    ///
    /// When the server has no process.
    pub fn signal(&self, signal: &str) {
        let pid_file = fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("the server runs");
        let postmaster = pid_file.lines().next().expect("its process").to_owned();
        let kill = |process: &str| {
            let kill = Command::new("kill").arg(format!("-{signal}")).arg(process).stderr(Stdio::null()).status();
            kill.expect("kill starts").success()
        };
        // The postmaster first: once it is stopped, it starts no new processes.
        assert!(kill(&postmaster), "the signal is sent");
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &postmaster]).output().expect("ps starts");
        let children = String::from_utf8_lossy(&children.stdout).into_owned();
        for child in children.split_whitespace() {
            // A process that has ended meanwhile needs no signal.
            let _ = kill(child);
        }
    }
}

/// A database for one test.
pub struct Database {
    options: PgConnectOptions,
    name: String,
    folder: PathBuf,
}

impl Database {
    /// A pool of at most `connections`, as an application would create it.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn pool(&self, connections: u32) -> PgPool {
        let pool = PgPoolOptions::new().max_connections(connections).connect_with(self.options.clone()).await;
        pool.expect("the server answers")
    }

    /// A pool whose connections go through a proxy that can break them.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn pool_over(&self, proxy: &Proxy) -> PgPool {
        let options = self.options.clone().socket(proxy.folder());
        PgPoolOptions::new().max_connections(4).connect_with(options).await.expect("the server answers")
    }

    /// A pool of one connection through a proxy that can break it. The pool does not ping the connection before each
    /// use.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn untested_pool_over(&self, proxy: &Proxy) -> PgPool {
        self.untested_pool_of(1, proxy).await
    }

    /// Like [`untested_pool_over`](Self::untested_pool_over), with at most `connections` connections.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn untested_pool_of(&self, connections: u32, proxy: &Proxy) -> PgPool {
        let options = self.options.clone().socket(proxy.folder());
        let pool = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
        let pool = pool.connect_with(options).await;
        pool.expect("the server answers")
    }

    /// A pool whose connections go through a pooler.
    ///
    /// # Panics
    ///
    /// When the pooler does not answer.
    pub async fn pool_through(&self, pooler: &PgBouncer, connections: u32) -> PgPool {
        let options = self.options.clone().socket(pooler.folder());
        let connect = async || options.connect().await.map(drop).map_err(|error| error.to_string());
        eventually(connect, Result::is_ok).await.expect("awaited");
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(options)
    }

    /// The options to connect as this role.
    pub fn options_of(&self, role: &str) -> PgConnectOptions {
        self.options.clone().username(role)
    }

    /// A proxy to the server that can break connections.
    pub fn proxy(&self) -> Proxy {
        Proxy::start(&self.folder)
    }

    /// A pool whose connections have this isolation level by default, as an application may configure it.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn pool_of_isolation(&self, level: &str) -> PgPool {
        let options = self.options.clone().options([("default_transaction_isolation", level)]);
        PgPoolOptions::new().max_connections(20).connect_with(options).await.expect("the server answers")
    }

    /// The URL of the database, for programs.
    pub fn url(&self) -> String {
        self.url_of(&self.folder)
    }

    /// The URL of the database at this host, for a server that listens on loopback.
    pub fn url_at(&self, user: &str, host: &str) -> String {
        format!("postgres://{user}@{host}:{}/{}", self.options.get_port(), self.name)
    }

    /// The URL of the database through a proxy that can break connections.
    pub fn url_over(&self, proxy: &Proxy) -> String {
        self.url_of(proxy.folder())
    }

    fn url_of(&self, folder: &Path) -> String {
        format!("postgres://{USER}@localhost/{}?host={}", self.name, folder.display())
    }
}

/// The account that runs the server if this process is root: PostgreSQL does not run as root.
pub(crate) fn account() -> Option<(&'static str, u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().expect("id starts");
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let account = id(&["-u", "postgres"]).zip(id(&["-g", "postgres"]));
    let (user, group) = account.expect("a user `postgres`: install it with `apt-get install postgresql`");
    Some(("postgres", user, group))
}

pub(crate) fn as_account(account: Option<&(&str, u32, u32)>, program: &Path) -> Command {
    let Some((name, ..)) = account else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={name}"), &format!("--regid={name}"), "--clear-groups"]).arg(program);
    command
}

/// The path of a program of PostgreSQL. Debian keeps the programs of each version in a separate folder.
/// `TEST_POSTGRES_BIN` names the folder of another version.
fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("TEST_POSTGRES_BIN") {
        let path = Path::new(&folder).join(name);
        assert!(path.is_file(), "TEST_POSTGRES_BIN names a folder without `{name}`");
        return path;
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no `{name}` here: install it with `apt-get install postgresql`"))
}
