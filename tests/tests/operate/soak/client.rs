//! One of the thousand clients: it has one connection, and sends one key after another.

use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use idempotent_tests::soak::TTL;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::soak::tally::Tally;

/// Far longer than any key takes. It only ends runs in which a key never gets an answer.
const LIMIT: Duration = Duration::from_mins(1);

pub(crate) struct Client {
    address: SocketAddr,
    random: Rng,
    name: String,
    pause: Duration,
    connection: Option<TcpStream>,
    tally: Tally,
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The number of the execution, and whether the response was a replay.
    Created(u64, bool),
    InFlight,
    /// The store is full or too slow.
    Unavailable,
}

impl Client {
    /// A client that pauses for up to `pause` between two keys.
    pub(crate) fn new(address: SocketAddr, random: Rng, name: String, pause: Duration) -> Self {
        Self { address, random, name, pause, connection: None, tally: Tally::default() }
    }

    /// Sends key after key until `end`. The last key is completed.
    pub(crate) async fn work(mut self, end: Instant) -> Tally {
        // Clients start at different times within one pause, so that they do not send at the same time.
        self.rest().await;
        while Instant::now() < end {
            let key = format!("{}-{}", self.name, self.tally.keys);
            tokio::time::timeout(LIMIT, self.live(&key)).await.unwrap_or_else(|_| panic!("{key} gets no answer"));
            self.rest().await;
        }
        self.tally
    }

    async fn rest(&mut self) {
        tokio::time::sleep(self.pause.mul_f64(self.random.f64())).await;
    }

    /// Everything that happens to one key: first execution, disconnects, duplicates, replays.
    async fn live(&mut self, key: &str) {
        let path = if self.random.bool() { "memory" } else { "sqlite" };
        let request = format!(
            "POST /{path}?{} HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {key}\r\ncontent-length: 0\r\n\r\n",
            self.random.u8(0..30)
        );
        let mut begun = Instant::now();
        match self.random.u8(..4) {
            // Disconnects before the answer.
            0 => self.leave_behind(request.as_bytes()).await,
            // Disconnects in the middle of the request.
            1 => {
                let end = self.random.usize(..request.len());
                self.leave_behind(&request.as_bytes()[..end]).await;
            }
            _ => {}
        }
        let mut seen = None;
        if self.random.u8(..4) == 0 {
            seen = self.send_duplicates(&request).await;
        }
        let first = loop {
            match self.ask(&request).await {
                Said::Created(number, _) => break number,
                Said::InFlight => self.pause(30).await,
                Said::Unavailable => {
                    // The memory store is full and has no entry for the key, or the client would have got it. The other
                    // store has no limit and was too slow, which proves nothing.
                    if path == "memory" {
                        begun = Instant::now();
                    }
                    self.pause(1_000).await;
                }
            }
        };
        let mut again = self.ask(&request).await;
        while path == "sqlite" && again == Said::Unavailable {
            self.pause(1_000).await;
            again = self.ask(&request).await;
        }
        self.tally.keys += 1;
        if begun.elapsed() >= TTL {
            self.tally.overdue += 1;
            return;
        }
        assert!(seen.is_none_or(|seen| seen == first), "{key} ran as {seen:?} and as {first}");
        assert_eq!(again, Said::Created(first, true), "{key} is not replayed");
    }

    async fn pause(&mut self, most: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(most / 4..most))).await;
    }

    async fn leave_behind(&mut self, bytes: &[u8]) {
        let mut connection = self.connect().await;
        connection.write_all(bytes).await.expect("the server reads");
        self.tally.left += 1;
    }

    /// Sends three requests at once, each on a separate connection. Returns the execution that all of them report.
    async fn send_duplicates(&mut self, request: &str) -> Option<u64> {
        let begun = Instant::now();
        let duplicates = join_all((0..3).map(|_| send(self.address, None, request))).await;
        let mut seen = None;
        for (_, said) in duplicates {
            self.count(&said);
            if let Said::Created(number, _) = said {
                let is_same = *seen.get_or_insert(number) == number;
                // If the machine delayed a duplicate for longer than the record lives, the duplicate may run again.
                let passed = begun.elapsed();
                assert!(is_same || passed >= TTL, "duplicates ran twice in {passed:?}: {request}");
            }
        }
        seen
    }

    async fn ask(&mut self, request: &str) -> Said {
        let connection = self.connect().await;
        let (connection, said) = send(self.address, Some(connection), request).await;
        self.connection = Some(connection);
        self.count(&said);
        said
    }

    async fn connect(&mut self) -> TcpStream {
        match self.connection.take() {
            Some(connection) => connection,
            None => TcpStream::connect(self.address).await.expect("the server listens"),
        }
    }

    fn count(&mut self, said: &Said) {
        self.tally.requests += 1;
        match said {
            Said::Created(_, is_replay) => self.tally.replays += u64::from(*is_replay),
            Said::InFlight => self.tally.in_flight += 1,
            Said::Unavailable => self.tally.unavailable += 1,
        }
    }
}

async fn send(address: SocketAddr, connection: Option<TcpStream>, request: &str) -> (TcpStream, Said) {
    let mut connection = match connection {
        Some(connection) => connection,
        None => TcpStream::connect(address).await.expect("the server listens"),
    };
    connection.write_all(request.as_bytes()).await.expect("the server reads");
    let said = read(&mut connection).await;
    (connection, said)
}

async fn read(connection: &mut TcpStream) -> Said {
    let mut received = Vec::with_capacity(2_048);
    loop {
        let length = connection.read_buf(&mut received).await.expect("the connection holds");
        assert_ne!(length, 0, "the server closes in the middle: {}", received.escape_ascii());
        let text = str::from_utf8(&received).expect("the answer is ASCII");
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let announced = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it has a length");
        if body.len() < announced.parse().expect("the length is a number") {
            continue;
        }
        return match head.get(9..12) {
            Some("201") => Said::Created(
                body[..20].parse().expect("the body begins with the execution's number"),
                head.contains("\r\nidempotent-replayed: true"),
            ),
            Some("409") if body.contains("\"in_flight\"") => Said::InFlight,
            Some("503") if body.contains("\"store_unavailable\"") => Said::Unavailable,
            _ => panic!("not expected: {text}"),
        };
    }
}
