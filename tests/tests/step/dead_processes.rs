//! Steps of processes that die or are stopped: recorded steps are not repeated, and no result is replaced.

use std::path::PathBuf;
use std::process::Stdio;

use futures_util::future::join_all;
use http::StatusCode;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::steps::{DIE_AT, Moment, WAIT_AT, WAITS, go};
use idempotent_tests::{Answer, answer, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A store, and the file with the effects of the steps.
struct Bench {
    store: String,
    effects: PathBuf,
    client: reqwest::Client,
    _folder: TempDir,
}

/// A server process, which is killed when this is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Bench {
    /// Uses SQLite if no URL is given.
    fn new(url: Option<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = url.unwrap_or_else(|| folder.path().join("idempotency.db").display().to_string());
        let client = reqwest::Client::builder().retry(reqwest::retry::never()).build().expect("a client");
        Self { store, effects: folder.path().join("effects"), client, _folder: folder }
    }

    async fn start(&self) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_steps-server"))
            .arg(&self.store)
            .arg(&self.effects)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the server can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let address = lines.next_line().await.expect("it prints text").expect("it prints its address");
        Server { child, address }
    }

    fn post(&self, server: &Server, key: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("http://{}/orders", server.address)).header("idempotency-key", key)
    }

    /// Repeats the request until the key is free, and returns the answer.
    async fn settled(&self, server: &Server, key: &str) -> Answer {
        let ask = async || answer(self.post(server, key)).await;
        eventually(ask, |answer| answer.status != StatusCode::CONFLICT).await
    }

    fn effects(&self, step: &str, key: &str) -> usize {
        let effects = std::fs::read_to_string(&self.effects).unwrap_or_default();
        effects.lines().filter(|line| *line == format!("{step} {key}")).count()
    }
}

impl Server {
    fn pid(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }
}

/// How often each step has had its effect, after a death at this place and a retry.
fn expected_effects(place: Moment) -> (usize, usize) {
    match place {
        Moment::InReserve => (2, 1),
        Moment::InCharge => (1, 2),
        Moment::BeforeReserve | Moment::Reserved | Moment::Charged => (1, 1),
    }
}

async fn what_is_recorded_is_not_repeated(bench: Bench) {
    let mut first_pids = Vec::new();
    for place in Moment::ALL {
        let mut server = bench.start().await;
        first_pids.push(server.pid());
        let died = bench.post(&server, &place.to_string()).header(DIE_AT, place.to_string()).send().await;
        assert!(died.is_err(), "the server dies at {place}");
        server.child.wait().await.expect("it is dead");
    }
    let (server, bench) = (&bench.start().await, &bench);
    let retries = Moment::ALL.map(|place| async move { bench.settled(server, &place.to_string()).await });
    let answers = join_all(retries).await;
    let second = server.pid();
    for ((place, first), retried) in Moment::ALL.into_iter().zip(first_pids).zip(answers) {
        let key = place.to_string();
        let (reserved_by, charged_by) = match place {
            Moment::BeforeReserve | Moment::InReserve => (second, second),
            Moment::Reserved | Moment::InCharge => (first, second),
            Moment::Charged => (first, first),
        };
        assert_eq!(retried.text(), format!("attempt 2: {reserved_by} {charged_by}"), "{place}");
        assert_eq!((bench.effects("reserve", &key), bench.effects("charge", &key)), expected_effects(place), "{place}");
        assert_eq!(bench.settled(server, &key).await.text(), retried.text());
    }
}

/// Stops the first attempt at `place` until a second one has answered. Returns the answers that the first and the
/// second client got.
async fn stand_still(bench: &Bench, place: Moment) -> (Answer, Answer) {
    let (stopped, other) = (bench.start().await, bench.start().await);
    let key = place.to_string();
    let first = tokio::spawn(answer(bench.post(&stopped, &key).header(WAIT_AT, place.to_string())));
    eventually(async || bench.effects(WAITS, &key), |&waits| waits == 1).await;
    let signal = |signal| {
        let pid = Pid::from_raw(stopped.pid().cast_signed()).expect("a process has a number");
        kill_process(pid, signal).expect("it runs");
    };
    let ask = async || {
        signal(Signal::STOP);
        let answer = answer(bench.post(&other, &key)).await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            // A process that was stopped in the middle of a write to a file blocks all others.
            signal(Signal::CONT);
        }
        answer
    };
    let second = eventually(ask, |answer| answer.status == StatusCode::CREATED).await;
    std::fs::write(go(&bench.effects, &key), "").expect("a file can be made");
    signal(Signal::CONT);
    let first = first.await.expect("the first client gets its answer");
    for server in [&stopped, &other] {
        let retry = bench.settled(server, &key).await;
        assert!(retry.is_replay(), "{retry:?}");
        assert_eq!(retry.text(), second.text());
    }
    let (_, executors) = second.text().split_once(": ").expect("the number of the attempt comes first");
    assert_eq!(executors, format!("{} {}", stopped.pid(), other.pid()));
    (first, second)
}

async fn a_stale_attempt_replaces_nothing_and_begins_nothing(bench: Bench) {
    let (first, _) = stand_still(&bench, Moment::InCharge).await;
    assert_eq!(first.rejection(), "claim_lost", "its result came too late");
    let key = Moment::InCharge.to_string();
    assert_eq!((bench.effects("reserve", &key), bench.effects("charge", &key)), (1, 2));
    let (first, _) = stand_still(&bench, Moment::Reserved).await;
    assert_eq!(first.rejection(), "claim_lost", "its next step came too late");
    let key = Moment::Reserved.to_string();
    assert_eq!((bench.effects("reserve", &key), bench.effects("charge", &key)), (1, 1));
}

#[tokio::test]
async fn a_step_recorded_in_sqlite_is_not_repeated_after_a_crash() {
    what_is_recorded_is_not_repeated(Bench::new(None)).await;
}

#[tokio::test]
async fn a_step_recorded_in_redis_is_not_repeated_after_a_crash() {
    let redis = RedisServer::start(&[]).await;
    what_is_recorded_is_not_repeated(Bench::new(Some(redis.url()))).await;
}

#[tokio::test]
async fn a_step_recorded_in_postgres_is_not_repeated_after_a_crash() {
    let database = PostgresServer::shared().await.database().await;
    what_is_recorded_is_not_repeated(Bench::new(Some(database.url()))).await;
}

#[tokio::test]
async fn a_stale_attempt_over_sqlite_replaces_no_step_and_begins_none() {
    a_stale_attempt_replaces_nothing_and_begins_nothing(Bench::new(None)).await;
}

#[tokio::test]
async fn a_stale_attempt_over_redis_replaces_no_step_and_begins_none() {
    let redis = RedisServer::start(&[]).await;
    a_stale_attempt_replaces_nothing_and_begins_nothing(Bench::new(Some(redis.url()))).await;
}

#[tokio::test]
async fn stale_attempt_over_postgres_replaces_and_begins_no_step() {
    let database = PostgresServer::shared().await.database().await;
    a_stale_attempt_replaces_nothing_and_begins_nothing(Bench::new(Some(database.url()))).await;
}
