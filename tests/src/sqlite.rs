//! Shared by the tests of the SQLite store: a database file, direct access to it without the store, and second
//! processes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Store, Token};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tempfile::TempDir;

use crate::alone::name_of;
use crate::eventually;

/// A database file in its own temporary folder, which is deleted when this is dropped.
pub struct SqliteFile {
    folder: TempDir,
}

impl SqliteFile {
    /// Makes the folder. The file itself does not exist yet.
    ///
    /// # Panics
    ///
    /// When the temporary folder cannot be made.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The path of the file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("idempotency.db")
    }

    /// The write-ahead log beside it, which SQLite deletes when the last connection closes.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("idempotency.db-wal")
    }

    /// The file of leases beside it.
    pub fn leases(&self) -> PathBuf {
        self.folder.path().join("idempotency.db-leases")
    }

    /// Opens a connection that does not go through the store.
    ///
    /// # Panics
    ///
    /// When the file is not a database.
    pub async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.path()).create_if_missing(true);
        options.connect().await.expect("the file opens")
    }

    /// Runs statements directly on the file, without the store.
    ///
    /// # Panics
    ///
    /// When a statement fails.
    pub async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        let mut connection = self.connect().await;
        connection.execute(sqlx::raw_sql(sql)).await.expect("the statements run");
        connection.close().await.expect("the connection closes");
    }

    /// Queries one number from the file.
    ///
    /// # Panics
    ///
    /// When the query returns no number.
    pub async fn number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        let mut connection = self.connect().await;
        let number = query.fetch_one(&mut connection).await.expect("the query gives a number");
        connection.close().await.expect("the connection closes");
        number
    }

    /// Queries one number from the file and its file of leases, which is attached as `leases`.
    ///
    /// # Panics
    ///
    /// When the query returns no number.
    pub async fn number_with_leases(&self, sql: &str) -> i64 {
        let mut connection = self.connect().await;
        let path = self.leases().display().to_string();
        sqlx::query("ATTACH ?1 AS leases").bind(path).execute(&mut connection).await.expect("the leases open");
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        let number = query.fetch_one(&mut connection).await.expect("the query gives a number");
        connection.close().await.expect("the connection closes");
        number
    }

    /// Waits until the first lease of every claim expired at least this many milliseconds ago.
    ///
    /// # Panics
    ///
    /// When a lease does not expire in time.
    pub async fn first_leases_over(&self, for_millis: u32) {
        let left = format!(
            "SELECT count(*) FROM idempotency_records WHERE state = 'claimed' \
             AND lease_until + {for_millis} > unixepoch('subsec') * 1000"
        );
        eventually(async || self.number(&left).await, |&count| count == 0).await;
    }

    /// The number of commits in the write-ahead log: of its frames that contain the size of the database after the
    /// commit.
    ///
    /// Counts since the last checkpoint that restarted the log, so a test must write fewer than 1000 pages.
    ///
    /// # Panics
    ///
    /// When there is no log.
    pub fn commits(&self) -> usize {
        let log = fs::read(self.log()).expect("the store is open and has written");
        let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().expect("four bytes"));
        let page_size = usize::try_from(number(8)).expect("pages of at most 64 KiB");
        let salts = &log[16..24];
        let frames = (32..log.len()).step_by(24 + page_size);
        frames.filter(|&frame| log[frame + 8..frame + 16] == *salts && number(frame + 4) != 0).count()
    }

    /// Waits until every connection to the file has closed.
    ///
    /// # Panics
    ///
    /// When a connection stays open.
    pub async fn closed(&self) {
        eventually(async || self.log().exists(), |&is_open| !is_open).await;
    }
}

/// The record key of `name`.
pub fn record_key(name: &str) -> RecordKey {
    RecordKey::new("charges", Some("alice"), name)
}

/// A claim for one minute, with a unique token.
pub fn claim_request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_hours(1))
        .with_after_crash(AfterCrash::Rerun)
}

/// A record with this body.
///
/// # Panics
///
/// Never.
pub fn record(body: impl Into<Vec<u8>>) -> Record {
    Record::new(
        StatusCode::CREATED,
        vec![
            (HeaderName::from_static("x-line"), HeaderValue::from_static("one")),
            (HeaderName::from_static("x-line"), HeaderValue::from_bytes(b"\xff two").expect("opaque bytes")),
        ],
        RecordedBody::Whole(body.into().into()),
        Fingerprint::from_bytes([7; 32]),
        std::time::UNIX_EPOCH + Duration::from_millis(1_750_000_000_123),
    )
}

/// Claims `key` and returns the token.
///
/// # Panics
///
/// When the claim is not granted.
pub async fn acquire(store: &impl Store, key: &RecordKey) -> Token {
    let request = claim_request();
    let claim = store.claim(key, request).await.expect("the store answers");
    assert_eq!(claim, Claim::Acquired { attempt: 1 });
    request.token
}

const ROLE: &str = "SQLITE_STORE_SECOND_PROCESS";

/// The database file for the second process; `None` in the first process. See [`SecondProcess`].
pub fn second_process() -> Option<PathBuf> {
    std::env::var_os(ROLE).map(PathBuf::from)
}

/// A second process that runs the same test.
pub struct SecondProcess {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl SecondProcess {
    /// Starts `test` in a second process. The test calls this function itself; in the second process,
    /// [`second_process`] returns `path`.
    ///
    /// # Panics
    ///
    /// When the process cannot be started.
    pub fn start(test: impl Fn(), path: &Path) -> Self {
        Self::spawn(Command::new(std::env::current_exe().expect("this program's path")), test, path)
    }

    /// Like [`SecondProcess::start`], as a user without privileges.
    ///
    /// # Panics
    ///
    /// When the process cannot be started.
    #[cfg(target_os = "linux")]
    pub fn start_unprivileged(test: impl Fn(), path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        use std::os::unix::process::CommandExt as _;

        // Through this path, the program can be executed even if the other user cannot access its folder.
        let mut command = Command::new("/proc/self/exe");
        if fs::metadata("/proc/self").expect("procfs").uid() == 0 {
            command.uid(65534).gid(65534);
        }
        Self::spawn(command, test, path)
    }

    fn spawn(mut command: Command, test: impl Fn(), path: &Path) -> Self {
        let command = command.args([name_of(&test), "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a second process");
        let input = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, lines }
    }

    /// The next line that the process sends with [`tell`].
    ///
    /// # Panics
    ///
    /// When the process ends without sending a line.
    pub fn told(&mut self) -> String {
        let mut lines = self.lines.by_ref().map(|line| line.expect("text"));
        lines
            .find_map(|line| line.split_once(TELLS).map(|(_, told)| told.to_owned()))
            .expect("the second process tells")
    }

    /// Lets the process continue after [`wait_for_go`].
    ///
    /// # Panics
    ///
    /// When the process has ended.
    pub fn go(&mut self) {
        writeln!(self.input, "go").expect("the second process listens");
    }
}

impl Drop for SecondProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TELLS: &str = "second process: ";

/// Sends a line to the first process.
pub fn tell(line: &str) {
    println!("{TELLS}{line}");
}

/// Waits until the first process calls [`SecondProcess::go`].
///
/// # Panics
///
/// When the first process has ended.
pub fn wait_for_go() {
    std::io::stdin().read_line(&mut String::new()).expect("the first process says go");
}
