//! Runs the server as a process: killed, stopped, and restarted with the same files.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use charges::signature::{self, NetworkSecret};
use futures_util::future::join_all;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::support::{LOG, Process};

/// Far longer than anything takes here. It only ends tests whose server hangs.
const LIMIT: Duration = Duration::from_mins(1);

/// A running server, and its client.
struct Server {
    process: Process,
    client: Client,
}

impl Server {
    fn start(data: &Path, options: &[&str]) -> Self {
        let client = Client::builder().retry(reqwest::retry::never()).build().expect("a client");
        Self { process: Process::start(data, options), client }
    }

    fn address(&self) -> &str {
        &self.process.address
    }

    fn post(&self, path: &str, key: &str, body: &Value) -> RequestBuilder {
        let request = self.client.post(format!("http://{}{path}", self.address())).bearer_auth("alice").json(body);
        request.header("idempotency-key", key)
    }

    /// Delivers an event of the card network.
    async fn deliver(&self, event: &Value) -> Response {
        let (body, url) = (event.to_string(), format!("http://{}/network-events", self.address()));
        let secret: NetworkSecret = NetworkSecret::PUBLIC.parse().expect("it is long enough");
        let request = self.client.post(url).header(signature::HEADER, secret.sign(body.as_bytes()));
        request.header("content-type", "application/json").body(body).send().await.expect("an answer")
    }

    async fn get(&self, path: &str) -> Vec<Value> {
        let response = self.client.get(format!("http://{}{path}", self.address())).send().await.expect("an answer");
        response.json().await.expect("a list")
    }

    /// Sends the request until no earlier request holds its key. Returns the status, whether it is a replay, and the
    /// body.
    async fn settled(&self, path: &str, key: &str, body: &Value) -> (StatusCode, bool, Value) {
        let begun = Instant::now();
        loop {
            let response = self.post(path, key, body).send().await.expect("an answer");
            let (status, replayed) = (response.status(), response.headers().contains_key("idempotent-replayed"));
            let body: Value = response.json().await.expect("JSON");
            if body["code"] != "in_flight" {
                return (status, replayed, body);
            }
            assert!(begun.elapsed() < LIMIT, "the key is never free");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends the request without waiting for its answer. Returns when the handler waits for the card network.
    async fn in_the_handler(&self, path: &str, key: &str, body: &Value) -> TcpStream {
        let mut connection = TcpStream::connect(self.address()).expect("a connection");
        let (body, asked) = (body.to_string(), self.get("/network").await.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer alice\r\nidempotency-key: {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.write_all((head + &body).as_bytes()).expect("the request is sent");
        let begun = Instant::now();
        while self.get("/network").await.len() == asked {
            assert!(begun.elapsed() < LIMIT, "the handler does not begin");
        }
        connection
    }

    fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.process.child.id().to_string()]).status();
        assert!(sent.expect("kill starts").success(), "it runs");
    }

    fn ended(mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.child.try_wait().expect("it is a child") {
                return status;
            }
            assert!(begun.elapsed() < LIMIT, "the server does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn order() -> Value {
    json!({ "amount": 1000, "currency": "EUR", "card": "4242" })
}

fn lines<'a>(ledger: &'a [Value], key: &str) -> Vec<&'a Value> {
    ledger.iter().filter(|line| line["key"] == key).collect()
}

#[tokio::test]
async fn killed_charge_runs_again_and_moves_the_money_once() {
    let data = folder();
    let server = Server::start(data.path(), &["--network-latency", "1h"]);
    let connection = server.in_the_handler("/charges", "killed", &order()).await;
    assert!(server.get("/ledger").await.is_empty());
    drop(server);
    drop(connection);

    let server = Server::start(data.path(), &[]);
    let response = server.post("/charges", "killed", &order()).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::CREATED, "it waits for no lease");
    let charge: Value = response.json().await.expect("JSON");
    let again = server.settled("/charges", "killed", &order()).await;
    assert_eq!(again, (StatusCode::CREATED, true, charge));

    let ledger = server.get("/ledger").await;
    assert_eq!(lines(&ledger, "killed").len(), 1, "{ledger:?}");
    let network = server.get("/network").await;
    assert_eq!(network.len(), 1, "one movement of money: {network:?}");
    assert_eq!(network[0]["times_asked"], 2);
}

#[tokio::test]
async fn every_store_serves_charges_refunds_and_events() {
    let database = PostgresServer::shared().await.database().await;
    let elsewhere = folder();
    let file = elsewhere.path().join("app.db");
    let redis = RedisServer::start(&[]).await;
    let stores = ["memory".to_owned(), format!("sqlite:{}", file.display()), redis.url(), database.url()];
    for store in &stores {
        let data = folder();
        let server = Server::start(data.path(), &["--network-latency", "1ms", "--store", store]);
        let (status, replayed, charge) = server.settled("/charges", "charge", &order()).await;
        assert_eq!((status, replayed), (StatusCode::CREATED, false), "{store}: {charge}");
        let refund = json!({ "charge": charge["id"], "amount": 400 });
        let event = json!({ "id": "evt_1", "charge": charge["id"], "kind": "dispute" });
        for replayed in [false, true] {
            let (status, is_replay, _) = server.settled("/refunds", "refund", &refund).await;
            assert_eq!((status, is_replay), (StatusCode::CREATED, replayed), "{store}");
            let taken = server.deliver(&event).await;
            assert_eq!(taken.status(), StatusCode::NO_CONTENT, "{store}");
        }
        assert_eq!(
            server.settled("/charges", "charge", &order()).await,
            (StatusCode::CREATED, true, charge),
            "{store}"
        );
        let declined = json!({ "amount": 5_000_000, "currency": "EUR", "card": "4242" });
        for replayed in [false, true] {
            let (status, is_replay, _) = server.settled("/charges", "declined", &declined).await;
            assert_eq!((status, is_replay), (StatusCode::PAYMENT_REQUIRED, replayed), "{store}");
        }
        let (status, _, rejection) =
            server.settled("/refunds", "rest", &json!({ "charge": refund["charge"], "amount": 601 })).await;
        assert_eq!((status, &rejection["error"]), (StatusCode::CONFLICT, &json!("refund_too_large")), "{store}");
        let kinds: Vec<Value> = server.get("/ledger").await.iter().map(|line| line["kind"].clone()).collect();
        assert_eq!(kinds, ["charge", "refund", "dispute"], "{store}");
    }
    assert!(file.exists());
}

/// With the public secret, and with a secret in the environment.
#[test]
fn printed_commands_work_when_they_are_pasted() {
    const SECRET: &str = "the card network's own secret";
    for options in [&["--network-latency", "1ms"][..], &["--network-latency", "1ms", "--network-secret", SECRET]] {
        let data = folder();
        let server = Process::start(data.path(), options);
        let (_, commands) = server.greeting.split_once("Try, twice each:\n").expect("commands");
        for replays in [0, 3] {
            let mut shell = Command::new("sh");
            let output =
                shell.args(["-ec", commands]).env("CHARGES_NETWORK_SECRET", SECRET).output().expect("sh starts");
            let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let said = said.to_lowercase();
            let statuses: Vec<&str> = said.split("http/1.1 ").skip(1).filter_map(|rest| rest.get(..3)).collect();
            assert_eq!(statuses, ["201", "201", "204"], "{commands}\n{said}\n{errors}");
            assert_eq!(said.matches("idempotent-replayed: true").count(), replays, "{said}");
            assert!(said.contains("\"kind\":\"dispute\""), "the ledger has the event: {said}");
        }
    }
}

#[tokio::test]
async fn killed_refund_never_runs_again_and_leaves_its_trace() {
    let data = folder();
    let server = Server::start(data.path(), &["--network-latency", "1ms"]);
    let (_, _, charge) = server.settled("/charges", "charge", &order()).await;
    drop(server);
    let server = Server::start(data.path(), &["--network-latency", "1h"]);
    let refund = json!({ "charge": charge["id"], "amount": 400 });
    let connection = server.in_the_handler("/refunds", "killed", &refund).await;
    drop(server);
    drop(connection);

    let server = Server::start(data.path(), &["--network-latency", "1ms"]);
    for _ in 0..2 {
        let (status, _, rejection) = server.settled("/refunds", "killed", &refund).await;
        assert_eq!((status, &rejection["code"]), (StatusCode::CONFLICT, &json!("outcome_unknown")));
    }
    let ledger = server.get("/ledger").await;
    let [line] = lines(&ledger, "killed")[..] else { panic!("a person finds it in the ledger: {ledger:?}") };
    assert_eq!((&line["settled"], &line["amount"]), (&json!(false), &json!(-400)));
    let network = server.get("/network").await;
    assert_eq!(network[1]["times_asked"], 1, "{network:?}");

    let (status, _, rejection) = server.settled("/refunds", "rest", &json!({ "charge": 1, "amount": 601 })).await;
    assert_eq!(
        (status, &rejection["error"]),
        (StatusCode::CONFLICT, &json!("refund_too_large")),
        "it may have happened"
    );
}

#[tokio::test]
async fn refunds_of_several_keys_never_exceed_the_charge() {
    let data = folder();
    let server = Server::start(data.path(), &["--network-latency", "100ms"]);
    let (_, _, charge) = server.settled("/charges", "charge", &order()).await;
    let refund = json!({ "charge": charge["id"], "amount": 300 });
    let keys: Vec<String> = (0..10).map(|number| format!("refund-{number}")).collect();
    let answers = join_all(keys.iter().map(|key| server.settled("/refunds", key, &refund))).await;
    let given = answers.iter().filter(|(status, ..)| *status == StatusCode::CREATED).count();
    let rejected = answers.iter().filter(|(_, _, body)| body["error"] == "refund_too_large").count();
    assert_eq!((given, rejected), (3, 7), "{answers:?}");
    assert!(server.get("/ledger").await.iter().all(|line| line["settled"] == true));
    let moved: i64 = server.get("/network").await.iter().filter_map(|line| line["amount"].as_i64()).sum();
    assert_eq!(moved, 1000 - 900);
}

#[tokio::test]
async fn a_refund_of_another_users_charge_is_not_found() {
    let data = folder();
    let server = Server::start(data.path(), &["--network-latency", "1ms"]);
    let (_, _, charge) = server.settled("/charges", "charge", &order()).await;
    let body = json!({ "charge": charge["id"], "amount": 1 });
    let request = server.client.post(format!("http://{}/refunds", server.address())).bearer_auth("bob");
    let response = request.header("idempotency-key", "mine").json(&body).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(server.get("/network").await.len(), 1, "the network was not asked");
}

#[tokio::test]
async fn a_stop_waits_for_a_handler_whose_client_is_gone() {
    let data = folder();
    let server = Server::start(data.path(), &["--network-latency", "1s"]);
    drop(server.in_the_handler("/charges", "left", &order()).await);
    server.terminate();
    assert!(server.ended().success());

    let server = Server::start(data.path(), &[]);
    let (status, replayed, _) = server.settled("/charges", "left", &order()).await;
    assert_eq!((status, replayed), (StatusCode::CREATED, true));
}

#[tokio::test]
async fn stop_does_not_wait_for_a_request_never_sent_whole() {
    let data = folder();
    let server = Server::start(data.path(), &["--grace", "100ms"]);
    let mut connection = TcpStream::connect(server.address()).expect("a connection");
    connection.write_all(b"POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\n").expect("a part of a request");
    // An answer on a later connection shows that the server has accepted the earlier one.
    assert!(server.get("/ledger").await.is_empty());
    server.terminate();
    assert!(server.ended().success());
}

#[tokio::test]
async fn log_in_a_file_is_plain_text_and_tells_replays_apart() {
    let data = folder();
    let server = Server::start(data.path(), &["--network-latency", "1ms"]);
    for _ in 0..2 {
        server.settled("/charges", "secret-key", &order()).await;
    }
    server.terminate();
    assert!(server.ended().success());
    let log = std::fs::read_to_string(data.path().join(LOG)).expect("a log");
    let ended: Vec<&str> = log.lines().filter(|line| line.contains("a guarded request has ended")).collect();
    assert_eq!(ended.len(), 2, "{log}");
    assert!(!ended[0].contains("replayed") && ended[1].contains("replayed"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(!log.contains("secret-key"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_look_into_the_records_with_their_password() {
    let data = folder();
    let server = Server::start(data.path(), &["--operator", "olga:correct horse battery"]);
    let charged = server.post("/charges", "looked-at", &order()).send().await.expect("an answer");
    assert_eq!(charged.status(), StatusCode::CREATED);
    let summary = format!("http://{}/ops/idempotency/api/summary", server.address());
    let looked = server.client.get(&summary).basic_auth("olga", Some("correct horse battery")).send().await;
    let told: Value = looked.expect("an answer").json().await.expect("JSON");
    assert_eq!((&told["counts"]["completed"], &told["purge_allowed"]), (&json!(1), &json!(true)), "{told}");
    for (name, password) in
        [("olga", "correct horse batterz"), ("olga", "correct horse"), ("alice", "correct horse battery")]
    {
        let stranger = server.client.get(&summary).basic_auth(name, Some(password)).send().await.expect("an answer");
        assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED, "{name}:{password}");
    }
    let closed = Server::start(folder().path(), &[]);
    let nothing = closed.client.get(format!("http://{}/ops/idempotency", closed.address())).send().await;
    assert_eq!(nothing.expect("an answer").status(), StatusCode::NOT_FOUND, "there is no inspector by default");
}
