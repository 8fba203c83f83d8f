//! Stores of every kind with entries in them, and calls of the program on them.

use std::process::{Command, Output, Stdio};

use axum::http::StatusCode;
use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore, StoreAdmin, Token};
use idempotent_runtime::{Registry, RegistryBuilder, SealingKey, SealingKeys};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Runs, Server, answer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::shop_handlers::routes;

/// A store, the options that name it to the program, and the handlers that use it.
pub(crate) struct Shop {
    options: Vec<String>,
    server: Server,
    runs: Runs,
    _file: Option<SqliteFile>,
}

impl Shop {
    async fn open(store: impl StoreAdmin, options: &[&str], file: Option<SqliteFile>) -> Self {
        Self::open_with(Registry::builder(store), options, file).await
    }

    async fn open_with(registry: RegistryBuilder, options: &[&str], file: Option<SqliteFile>) -> Self {
        let runs = Runs::held();
        let app = routes(&registry.build(), &runs);
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { options, server: Server::start(app).await, runs, _file: file }
    }

    /// Creates a shop on each kind of store, with an entry in each state that a handler can leave behind.
    pub(crate) async fn of_every_kind() -> Vec<Self> {
        let shops =
            vec![Self::sqlite().await, Self::postgres().await, Self::redis().await, Self::redis_cluster().await];
        for shop in &shops {
            shop.charge("completed-8e03978e").await;
            assert_eq!(shop.server.post_with_key("/exports", "unrecorded-8e03978e").await.status, StatusCode::OK);
            let cut_off = shop.server.post_with_key("/transfers", "cut-off-8e03978e").await;
            assert_eq!(cut_off.status, StatusCode::INTERNAL_SERVER_ERROR);
            tokio::spawn(shop.server.post("/payouts").header("idempotency-key", "running-8e03978e").send());
            shop.runs.until_started(1).await;
        }
        shops
    }

    pub(crate) async fn sqlite() -> Self {
        let file = SqliteFile::new();
        let store = SqliteStore::open(file.path()).await.expect("the store opens");
        let url = format!("sqlite://{}", file.path().display());
        Self::open(store, &["--store", &url], Some(file)).await
    }

    /// Creates a shop whose registry seals the records of the deployment `production` with this key.
    pub(crate) async fn sqlite_sealed(key: &str) -> Self {
        let file = SqliteFile::new();
        let store = SqliteStore::open(file.path()).await.expect("the store opens");
        let url = format!("sqlite://{}", file.path().display());
        let key: SealingKey = key.parse().expect("a sealing key");
        let keys = SealingKeys::from(key).deployment("production");
        Self::open_with(Registry::builder(store).seal_with(keys), &["--store", &url], Some(file)).await
    }

    async fn postgres() -> Self {
        let database = PostgresServer::shared().await.database().await;
        let store = PostgresStore::builder(database.pool(10).await).schema("of the shop").build();
        store.migrate().await.expect("the tables are made");
        Self::open(store, &["--store", &database.url(), "--schema", "of the shop"], None).await
    }

    async fn redis() -> Self {
        let (url, prefix) = (RedisServer::shared().await.url(), prefix());
        let store = RedisStore::builder(&url).prefix(&prefix).open().await.expect("the store opens");
        Self::open(store, &["--store", &url, "--prefix", &prefix], None).await
    }

    async fn redis_cluster() -> Self {
        let (urls, prefix) = (RedisCluster::shared().await.urls(), prefix());
        let store = RedisStore::cluster(urls.clone()).prefix(&prefix).open().await.expect("the store opens");
        Self::open(store, &["--store", &urls[0], "--cluster", "--prefix", &prefix], None).await
    }

    /// Sends a charge of the caller `alice`, which is answered.
    pub(crate) async fn charge(&self, key: &str) {
        let charge = self.server.post("/charges").header("x-caller", "alice").header("idempotency-key", key);
        assert_eq!(answer(charge).await.status, StatusCode::CREATED);
    }

    /// Sends a transfer whose handler is cut off, so that the outcome is unknown.
    pub(crate) async fn cut_off(&self) {
        assert_eq!(self.retry().await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }

    /// Sends another request with the key of [`cut_off`](Self::cut_off).
    pub(crate) async fn retry(&self) -> Answer {
        self.server.post_with_key("/transfers", "cut-off-8e03978e").await
    }

    /// Returns the options that name this store to the program.
    pub(crate) fn options(&self) -> &[String] {
        &self.options
    }

    /// Runs the program on this store.
    pub(crate) async fn asks(&self, arguments: &[&str]) -> Said {
        let options = self.options.iter().map(String::as_str);
        idempotent(&options.chain(arguments.iter().copied()).collect::<Vec<_>>()).await
    }

    /// Runs the program on a terminal, where a person types `answer`.
    pub(crate) async fn asks_a_person(&self, arguments: &[&str], answer: &str) -> Said {
        self.asks_a_person_who_waits(arguments, async || {}, answer).await
    }

    /// Does the same, and runs `meanwhile` between the question and the answer.
    pub(crate) async fn asks_a_person_who_waits(
        &self,
        arguments: &[&str],
        meanwhile: impl AsyncFnOnce(),
        answer: &str,
    ) -> Said {
        let quoted = |word: &str| format!("'{word}'");
        let words = self.options.iter().map(String::as_str).chain(arguments.iter().copied()).map(quoted);
        let line = format!("{} {}", env!("CARGO_BIN_EXE_idempotent"), words.collect::<Vec<_>>().join(" "));
        let mut terminal = tokio::process::Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("`script` starts");
        let (mut keys, mut screen) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (mut shown, mut asked) = (Vec::new(), Some(meanwhile));
        while screen.read_buf(&mut shown).await.expect("the screen is read") > 0 {
            if String::from_utf8_lossy(&shown).contains("Only `yes` does: ")
                && let Some(meanwhile) = asked.take()
            {
                meanwhile().await;
                keys.write_all(format!("{answer}\n").as_bytes()).await.expect("the program reads");
            }
        }
        let status = child.wait().await.expect("the program ends");
        Said { out: String::from_utf8(shown).expect("text"), error: String::new(), code: status.code() }
    }

    /// Lets the handler of the payout of [`of_every_kind`](Self::of_every_kind) finish.
    pub(crate) async fn finish_the_payout(&self) {
        self.runs.let_finish(1);
        self.runs.until_finished(1).await;
        idempotent_tests::eventually(
            async || self.asks(&["list", "--json"]).await.json()["counts"]["in_flight"].clone(),
            |running| *running == 0,
        )
        .await;
    }
}

/// Returns a unique prefix, because all tests share the servers.
fn prefix() -> String {
    format!("{:x}:", Token::unique().as_u128())
}

/// The output of the program, and its exit status.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) error: String,
    pub(crate) code: Option<i32>,
}

impl Said {
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).expect("JSON")
    }
}

/// Runs the program without a terminal and without a store from its environment.
pub(crate) async fn idempotent(arguments: &[&str]) -> Said {
    let mut program = Command::new(env!("CARGO_BIN_EXE_idempotent"));
    program.args(arguments);
    for name in [
        "IDEMPOTENT_STORE",
        "IDEMPOTENT_SEALING_KEY",
        "IDEMPOTENT_DIGEST_KEY",
        "IDEMPOTENT_ACTOR",
        "IDEMPOTENT_AUDIT_LOG",
    ] {
        program.env_remove(name);
    }
    // A container leaves the user name empty.
    program.env("USER", "").env_remove("LOGNAME").env_remove("USERNAME");
    run(program).await
}

pub(crate) async fn run(program: Command) -> Said {
    let output = tokio::process::Command::from(program).stdin(Stdio::null()).output().await;
    let Output { status, stdout, stderr } = output.expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said { out: text(stdout), error: text(stderr), code: status.code() }
}
