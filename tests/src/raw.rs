//! Sends requests byte by byte, and returns everything that the server sends on the connection.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use crate::{Answer, PATIENCE};

/// When the client closes its side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// Never: the server must close the connection. Otherwise the test fails.
    UntilClosed,
    /// When the server has sent nothing for this long. Then the client closes its side and reads to the end.
    UntilSilent(Duration),
    /// At once. Then it reads to the end.
    Leaves,
}

/// What came back on one connection.
#[derive(Debug)]
pub struct Exchange {
    /// The answers, in order, without interim ones.
    pub answers: Vec<Answer>,
    /// The bytes after the last complete answer.
    pub rest: Vec<u8>,
    /// Whether the server closed before the client did.
    pub server_closed: bool,
}

impl Raw {
    /// Sends these bytes on a new connection, and reads what the server sends.
    ///
    /// # Panics
    ///
    /// When the server cannot be reached, or does not close.
    pub async fn send(self, address: SocketAddr, bytes: &[u8]) -> Exchange {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("a connection has this option");
        let (mut reading, mut writing) = stream.into_split();
        let mut received = Vec::new();
        let mut server_closed = false;
        // A server that rejects a request closes before it has read all of it. So the client writes and reads at the
        // same time, and a failed write is no failure of the exchange.
        let write = async {
            let _ = writing.write_all(bytes).await;
            writing
        };
        let read = async {
            match self {
                Self::UntilClosed => server_closed = read_while_it_comes(&mut reading, &mut received, PATIENCE).await,
                Self::UntilSilent(silence) => {
                    server_closed = read_while_it_comes(&mut reading, &mut received, silence).await;
                }
                Self::Leaves => {}
            }
        };
        let (mut writing, ()) = tokio::join!(write, read);
        if !server_closed {
            assert_ne!(self, Self::UntilClosed, "the connection stays open after {}", received.escape_ascii());
            let _ = writing.shutdown().await;
            let closed = read_while_it_comes(&mut reading, &mut received, PATIENCE).await;
            assert!(closed, "the connection stays open though the client has left");
        }
        let (answers, rest) = parse(&received);
        Exchange { answers, rest, server_closed }
    }
}

/// Reads until the server closes (true) or sends nothing for too long (false).
async fn read_while_it_comes(reading: &mut OwnedReadHalf, received: &mut Vec<u8>, silence: Duration) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match tokio::time::timeout(silence, reading.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(length)) => received.extend_from_slice(&buffer[..length]),
            Err(_) => return false,
        }
    }
}

/// The complete answers, and the bytes after them.
fn parse(mut bytes: &[u8]) -> (Vec<Answer>, Vec<u8>) {
    let mut answers = Vec::new();
    while let Some((answer, rest)) = parse_one(bytes) {
        if !answer.status.is_informational() {
            answers.push(answer);
        }
        bytes = rest;
    }
    (answers, bytes.to_vec())
}

fn parse_one(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, rest) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let status = lines.next()?.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    let status = StatusCode::from_bytes(status).ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    let length = match headers.get("content-length") {
        Some(length) => length.to_str().ok()?.parse().ok()?,
        None => 0,
    };
    let body = rest.get(..length)?.to_vec();
    Some((Answer { status, headers, body }, &rest[length..]))
}
