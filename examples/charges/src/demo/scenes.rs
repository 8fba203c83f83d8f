//! The failures, scene by scene, and the expected result of each.

use anstream::println;
use anyhow::Context;
use charges::signature::NetworkSecret;
use futures_util::future::try_join_all;
use reqwest::{Client, StatusCode};

use super::client::{Answer, NetworkCharge, Operation, books, deliver};
use super::server::Server;
use super::{ASIDE, BROKEN, HOLDS, Line, TITLE};

/// The server and the client of the scenes, and the results so far.
pub(super) struct Stage {
    client: Client,
    server: Option<Server>,
    scene: usize,
    failures: usize,
}

pub(super) async fn all(stage: &mut Stage) -> anyhow::Result<()> {
    a_response_is_lost(stage).await?;
    a_client_hangs_up(stage).await?;
    fifty_at_once(stage).await?;
    a_key_is_reused(stage).await?;
    another_user_has_the_same_key(stage).await?;
    a_declined_card_stays_declined(stage).await?;
    a_double_click_waits(stage).await?;
    an_event_is_delivered_three_times(stage).await?;
    the_server_is_restarted(stage).await?;
    the_server_is_killed_in_a_charge(stage).await?;
    the_server_is_killed_in_a_refund(stage).await
}

const TEA: &str = r#"{"amount": 450, "currency": "EUR", "card": "4242"}"#;

fn charge<'a>(user: &'a str, key: &'a str) -> Operation<'a> {
    Operation { user, path: "/charges", key, body: TEA }
}

async fn a_response_is_lost(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("A response is lost on its way");
    let operation = charge("alice", "lost-response");
    let connection = operation.begin(&stage.client, stage.server()?).await?;
    // When the socket can be read, the server has written its response. The client does not read it.
    connection.readable().await?;
    drop(connection);
    says("the charge is made, and the connection breaks before the client reads the response");
    let retry = stage.send(operation).await?;
    stage.expect("the retry gets the recorded response", &retry, StatusCode::CREATED, true);
    stage.expect_entries("lost-response", 1).await
}

async fn a_client_hangs_up(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("A client disconnects while the handler runs");
    let operation = charge("alice", "hang-up");
    drop(operation.begin(&stage.client, stage.server()?).await?);
    says("the connection is closed in the middle of the handler, which continues");
    let retry = operation.retry_until_settled(&stage.client, stage.server()?).await?;
    stage.expect("the retry gets the response that the client missed", &retry, StatusCode::CREATED, true);
    stage.expect_entries("hang-up", 1).await
}

async fn fifty_at_once(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("Fifty clicks at once");
    let operation = charge("alice", "fifty-clicks");
    let answers =
        try_join_all((0..50).map(|_| operation.send(&stage.client, stage.server.as_ref().expect("it runs")))).await?;
    let ran = answers.iter().filter(|answer| answer.status == StatusCode::CREATED && !answer.replayed).count();
    let rejected = answers.iter().filter(|answer| answer.is_in_flight()).count();
    let replayed = answers.iter().filter(|answer| answer.replayed).count();
    says(&format!("{ran} ran, {rejected} were rejected with 409 in_flight, {replayed} were replayed"));
    stage.check(
        "exactly one ran, and every other one was rejected or replayed",
        ran == 1 && ran + rejected + replayed == 50,
    );
    stage.expect_entries("fifty-clicks", 1).await
}

async fn a_key_is_reused(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("A key is reused for another amount");
    let body = r#"{"amount": 99000, "currency": "EUR", "card": "4242"}"#;
    let answer = stage.send(Operation { body, ..charge("alice", "lost-response") }).await?;
    stage.expect_rejection("it is rejected", &answer, StatusCode::UNPROCESSABLE_ENTITY, "key_reused");
    stage.expect_entries("lost-response", 1).await
}

async fn another_user_has_the_same_key(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("Another user happens to use the same key");
    let answer = stage.send(charge("bob", "lost-response")).await?;
    stage.expect("Bob gets a charge of his own, and nothing of Alice's", &answer, StatusCode::CREATED, false);
    stage.expect_entries("lost-response", 2).await
}

async fn a_declined_card_stays_declined(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("A declined card is final: the policy records 402");
    let body = r#"{"amount": 5000000, "currency": "EUR", "card": "4242"}"#;
    let operation = Operation { body, ..charge("alice", "declined") };
    let first = stage.send(operation).await?;
    stage.expect("the network declines", &first, StatusCode::PAYMENT_REQUIRED, false);
    let retry = stage.send(operation).await?;
    stage.expect("the retry does not ask it again", &retry, StatusCode::PAYMENT_REQUIRED, true);
    stage.expect_entries("declined", 0).await
}

async fn a_double_click_waits(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("A double click on a refund: the policy waits");
    let operation =
        Operation { user: "alice", path: "/refunds", key: "refund", body: r#"{"charge": 1, "amount": 100}"# };
    let (first, second) = tokio::try_join!(
        operation.send(&stage.client, stage.server()?),
        operation.send(&stage.client, stage.server()?)
    )?;
    let (ran, waited) = if first.replayed { (second, first) } else { (first, second) };
    stage.expect("one runs", &ran, StatusCode::CREATED, false);
    stage.expect("the other gets its response", &waited, StatusCode::CREATED, true);
    stage.expect_entries("refund", 1).await
}

async fn an_event_is_delivered_three_times(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("The card network delivers an event three times: its id is the key");
    let event = r#"{"id": "evt_1", "charge": 1, "kind": "dispute"}"#;
    let forged = deliver(&stage.client, stage.server()?, "a secret that is guessed", event).await?;
    stage.expect_rejection("a forged one claims nothing", &forged, StatusCode::UNAUTHORIZED, "bad_signature");
    for delivery in 0..3 {
        let answer = deliver(&stage.client, stage.server()?, NetworkSecret::PUBLIC, event).await?;
        let expectation = if delivery == 0 { "the first one is taken" } else { "a repeated one is replayed" };
        stage.expect(expectation, &answer, StatusCode::NO_CONTENT, delivery > 0);
    }
    stage.expect_entries("evt_1", 1).await
}

async fn the_server_is_restarted(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("The server is restarted while a handler runs whose client is gone");
    let operation = charge("alice", "restart");
    drop(operation.begin(&stage.client, stage.server()?).await?);
    let server = stage.server.take().context("it runs")?;
    stage.server = Some(server.stopped_and_restarted().await?);
    says("SIGTERM: it drained, stopped, and was started again over the same files");
    let retry = stage.send(operation).await?;
    stage.expect("the retry gets the recorded response", &retry, StatusCode::CREATED, true);
    stage.expect_entries("restart", 1).await
}

async fn the_server_is_killed_in_a_charge(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("kill -9 in the middle of a charge: exactly once in the ledger, with the record of its response");
    let operation = charge("alice", "killed");
    let connection = operation.begin(&stage.client, stage.server()?).await?;
    stage.kill_and_restart().await?;
    drop(connection);
    let rolled_back = stage.ledger().await?.iter().all(|line| line.key.as_deref() != Some("killed"));
    stage.check("the ledger has nothing of it, and no claim blocks the retry", rolled_back);
    let retry = stage.send(operation).await?;
    stage.expect("the first retry runs at once", &retry, StatusCode::CREATED, false);
    let again = stage.send(operation).await?;
    stage.expect("from then on it is replayed", &again, StatusCode::CREATED, true);
    let asked = stage.times_asked("killed").await?;
    stage.check("the card network was asked twice with one reference, and moved the money once", asked == Some(2));
    stage.expect_entries("killed", 1).await
}

async fn the_server_is_killed_in_a_refund(stage: &mut Stage) -> anyhow::Result<()> {
    stage.scene("kill -9 in the middle of a refund: at most once");
    let operation =
        Operation { user: "alice", path: "/refunds", key: "killed-refund", body: r#"{"charge": 1, "amount": 50}"# };
    let connection = operation.begin(&stage.client, stage.server()?).await?;
    stage.kill_and_restart().await?;
    drop(connection);
    let retry = operation.retry_until_settled(&stage.client, stage.server()?).await?;
    stage.expect_rejection("it is never run again", &retry, StatusCode::CONFLICT, "outcome_unknown");
    let unsettled =
        stage.ledger().await?.iter().any(|line| line.key.as_deref() == Some("killed-refund") && !line.settled);
    stage.check("its entry stays unsettled until a person asks the card network for the outcome", unsettled);
    let asked = stage.times_asked("killed-refund").await?;
    stage.check("the card network was asked once", asked == Some(1));
    stage.expect_entries("killed-refund", 1).await
}

fn says(line: &str) {
    println!("      {ASIDE}{line}{ASIDE:#}");
}

impl Stage {
    pub(super) fn new(client: Client, server: Server) -> Self {
        Self { client, server: Some(server), scene: 0, failures: 0 }
    }

    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    pub(super) async fn ledger(&self) -> anyhow::Result<Vec<Line>> {
        let response = self.client.get(format!("http://{}/ledger", self.server()?.address())).send().await?;
        Ok(response.error_for_status()?.json().await?)
    }

    pub(super) async fn books(&self) -> anyhow::Result<Vec<NetworkCharge>> {
        books(&self.client, self.server()?).await
    }

    /// How often the card network was asked for the entry under this key.
    async fn times_asked(&self, key: &str) -> anyhow::Result<Option<u64>> {
        let ledger = self.ledger().await?;
        let entry = ledger.iter().find(|line| line.key.as_deref() == Some(key));
        let books = self.books().await?;
        let charge = books.iter().find(|charge| entry.is_some_and(|entry| entry.reference == charge.reference));
        Ok(charge.map(|charge| charge.times_asked))
    }

    fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_ref().context("the server runs")
    }

    async fn send(&self, operation: Operation<'_>) -> anyhow::Result<Answer> {
        operation.send(&self.client, self.server()?).await
    }

    async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        let server = self.server.take().context("the server runs")?;
        let process = server.process();
        self.server = Some(server.killed_and_restarted().await?);
        says(&format!("process {process} is killed, and a new one started over the same files"));
        Ok(())
    }

    fn scene(&mut self, title: &str) {
        self.scene += 1;
        println!("{TITLE}{:>2}. {title}{TITLE:#}", self.scene);
    }

    fn check(&mut self, expectation: &str, holds: bool) {
        let (style, mark) = if holds { (HOLDS, "✓") } else { (BROKEN, "✗") };
        println!("    {style}{mark}{style:#} {expectation}");
        self.failures += usize::from(!holds);
    }

    fn expect(&mut self, expectation: &str, answer: &Answer, status: StatusCode, replayed: bool) {
        let holds = answer.status == status && answer.replayed == replayed;
        self.check(&format!("{expectation}: {}", answer.summary()), holds);
    }

    fn expect_rejection(&mut self, expectation: &str, answer: &Answer, status: StatusCode, code: &str) {
        let holds = answer.status == status && answer.code() == code;
        self.check(&format!("{expectation}: {}", answer.summary()), holds);
    }

    async fn expect_entries(&mut self, key: &str, expected: usize) -> anyhow::Result<()> {
        let found = self.ledger().await?.iter().filter(|line| line.key.as_deref() == Some(key)).count();
        let entries = if found == 1 { "entry" } else { "entries" };
        self.check(&format!("{found} {entries} in the ledger under the key {key:?}"), found == expected);
        println!();
        Ok(())
    }
}
