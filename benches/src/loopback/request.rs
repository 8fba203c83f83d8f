//! The request for every server, and a client that checks each answer. wrk cannot do that at this speed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::server::{Contender, Server};
use crate::charge::{CHARGES, order};

/// The number of keys that are recorded before a round.
const RECORDED: usize = 100;

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The parts of every request, except its key.
#[derive(Clone)]
pub struct Template {
    /// The part before the key.
    pub head: String,
    /// The part after the key.
    pub tail: String,
}

impl Template {
    /// A small order.
    ///
    /// # Panics
    ///
    /// Never: JSON is text.
    pub fn new() -> Self {
        let body = String::from_utf8(order(200).to_vec()).expect("JSON is text");
        // The same host for every port, so that all servers get the same bytes.
        let head = format!(
            "POST {CHARGES} HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nIdempotency-Key: ",
            body.len()
        );
        Self { head, tail: format!("\r\n\r\n{body}") }
    }
}

impl Default for Template {
    fn default() -> Self {
        Self::new()
    }
}

/// The keys that wrk repeats. No run has the number 0.
pub fn recorded_keys() -> Vec<String> {
    (0..RECORDED).map(|number| format!("00000000-0000-4000-8000-{number:012x}")).collect()
}

/// The sizes of a server's answers, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The answer to a new key.
    pub first: usize,
    /// The answer to a key that was answered before.
    pub repeated: usize,
}

/// Records the responses of [`recorded_keys`], and repeats each key once.
///
/// # Errors
///
/// When an answer is not the one that is to be measured.
pub fn warm_up(server: &Server, template: &Template) -> anyhow::Result<Sizes> {
    let mut connection = TcpStream::connect(("127.0.0.1", server.port))?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let is_guarded = server.contender != Contender::Bare;
    let first = answers(&mut connection, template, false).context("a first execution")?;
    let repeated = answers(&mut connection, template, is_guarded).context("a retry")?;
    Ok(Sizes { first, repeated })
}

/// Sends every recorded key once, and returns the size of each answer.
fn answers(connection: &mut TcpStream, template: &Template, is_replayed: bool) -> anyhow::Result<usize> {
    let mut sizes = Vec::new();
    for key in recorded_keys() {
        let answer = answer(connection, &format!("{}{key}{}", template.head, template.tail))?;
        ensure!(answer.starts_with("HTTP/1.1 201 "), "the answer should have the status 201, but it is:\n{answer}");
        let has_mark = answer.contains("\r\nidempotent-replayed: true\r\n");
        let should = if is_replayed { "should" } else { "should not" };
        ensure!(has_mark == is_replayed, "the answer {should} be marked as replayed, but it is:\n{answer}");
        sizes.push(answer.len());
    }
    let size = sizes[0];
    ensure!(sizes.iter().all(|&other| other == size), "the answers should have one size, but they have {sizes:?}");
    Ok(size)
}

fn answer(connection: &mut TcpStream, request: &str) -> anyhow::Result<String> {
    connection.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = connection.read(&mut chunk).context("no whole answer has come")?;
        ensure!(read > 0, "the server has closed the connection");
        answer.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.with_context(|| format!("the answer has no length:\n{head}"))?.parse()?;
        if body.len() >= length {
            return Ok(text.into_owned());
        }
    }
}
