//! The demo's clients: one that waits for its answer, and one that does not.

use std::time::Duration;

use anyhow::{Context, bail};
use charges::signature::{self, NetworkSecret};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::server::Server;

/// How long a retry is repeated while the first request still runs.
const PATIENCE: Duration = Duration::from_mins(1);

/// One operation of one user, under one key.
#[derive(Clone, Copy)]
pub(super) struct Operation<'a> {
    pub(super) user: &'a str,
    pub(super) path: &'a str,
    pub(super) key: &'a str,
    pub(super) body: &'a str,
}

/// The answer of the server.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) replayed: bool,
    pub(super) body: Value,
}

impl Answer {
    /// The code of a rejection or an error of the API.
    pub(super) fn code(&self) -> &str {
        self.body["code"].as_str().or_else(|| self.body["error"].as_str()).unwrap_or_default()
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.code() == "in_flight"
    }

    /// A summary in one line, for people.
    pub(super) fn summary(&self) -> String {
        let replayed = if self.replayed { ", replayed" } else { "" };
        let what = match (&self.body["id"], self.code()) {
            (Value::Number(id), _) => format!(", entry #{id}"),
            (_, "") => String::new(),
            (_, code) => format!(" {code}"),
        };
        format!("{}{what}{replayed}", self.status.as_u16())
    }
}

impl Operation<'_> {
    /// Sends the operation and waits for the answer.
    pub(super) async fn send(&self, client: &Client, server: &Server) -> anyhow::Result<Answer> {
        let request = client
            .post(format!("http://{}{}", server.address(), self.path))
            .bearer_auth(self.user)
            .header("idempotency-key", self.key)
            .header("content-type", "application/json")
            .body(self.body.to_owned());
        answer(request).await
    }

    /// Sends the operation again while the first request still runs. A real client would wait as long as `Retry-After`
    /// says; this one waits less.
    pub(super) async fn retry_until_settled(&self, client: &Client, server: &Server) -> anyhow::Result<Answer> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.send(client, server).await?;
            if !answer.is_in_flight() {
                return Ok(answer);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the first request never ended");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends the operation on a separate connection. Returns when its handler waits for the card network.
    pub(super) async fn begin(&self, client: &Client, server: &Server) -> anyhow::Result<TcpStream> {
        let Self { user, path, key, body } = self;
        let mut connection = TcpStream::connect(server.address()).await?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {user}\r\nidempotency-key: {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            server.address(),
            body.len()
        );
        let before = times_asked(&books(client, server).await?);
        connection.write_all(request.as_bytes()).await?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while times_asked(&books(client, server).await?) == before {
            if tokio::time::Instant::now() > deadline {
                bail!("the handler does not begin");
            }
        }
        Ok(connection)
    }
}

/// Delivers an event as the card network does, with a signature by this secret.
pub(super) async fn deliver(client: &Client, server: &Server, secret: &str, event: &str) -> anyhow::Result<Answer> {
    let secret: NetworkSecret = secret.parse().map_err(anyhow::Error::msg)?;
    let request = client
        .post(format!("http://{}/network-events", server.address()))
        .header(signature::HEADER, secret.sign(event.as_bytes()))
        .header("content-type", "application/json")
        .body(event.to_owned());
    answer(request).await
}

async fn answer(request: RequestBuilder) -> anyhow::Result<Answer> {
    let response = request.send().await.context("the server does not answer")?;
    let status = response.status();
    let replayed = response.headers().contains_key("idempotent-replayed");
    let body = response.bytes().await?;
    Ok(Answer { status, replayed, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

/// The card network's books.
pub(super) async fn books(client: &Client, server: &Server) -> anyhow::Result<Vec<NetworkCharge>> {
    let books = client.get(format!("http://{}/network", server.address())).send().await?;
    Ok(books.error_for_status()?.json().await?)
}

/// A line of the card network's books.
#[derive(Deserialize)]
pub(super) struct NetworkCharge {
    pub(super) reference: String,
    pub(super) amount: i64,
    pub(super) approved: bool,
    pub(super) times_asked: u64,
}

/// How often the card network was asked. Handlers ask it before they end, so a higher number shows that a handler runs.
fn times_asked(books: &[NetworkCharge]) -> u64 {
    books.iter().map(|charge| charge.times_asked).sum()
}
