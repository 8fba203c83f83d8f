//! A server that speaks Redis's protocol, answers as the test decides, and remembers what it received.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::lock;

/// A fake Redis that listens on loopback until its Tokio runtime ends.
pub struct FakeRedis {
    port: u16,
    heard: Arc<Mutex<String>>,
}

impl FakeRedis {
    /// Starts a server that answers each command, given as its words, with the protocol value that `answer` returns.
    ///
    /// # Panics
    ///
    /// When loopback has no free port.
    pub async fn start(answer: impl Fn(&[String]) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let (answer, heard) = (Arc::new(answer), Arc::new(Mutex::new(String::new())));
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&answer), Arc::clone(&all)));
            }
        });
        Self { port, heard }
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything that it received, as text.
    pub fn heard(&self) -> String {
        lock(&self.heard).clone()
    }
}

/// A bulk string in Redis's protocol.
pub fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

async fn serve(mut client: TcpStream, answer: Arc<impl Fn(&[String]) -> String>, all: Arc<Mutex<String>>) {
    let (mut text, mut buffer) = (String::new(), vec![0; 65536]);
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        let sent = String::from_utf8_lossy(&buffer[..length]);
        lock(&all).push_str(&sent);
        text.push_str(&sent);
        while let Some((words, rest)) = first_command(&text) {
            text = rest;
            if client.write_all(answer(&words).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// The words of the first command, and the text after it; `None` while the command is incomplete.
fn first_command(text: &str) -> Option<(Vec<String>, String)> {
    let (count, mut rest) = text.strip_prefix('*')?.split_once("\r\n")?;
    let mut words = Vec::new();
    for _ in 0..count.parse::<usize>().ok()? {
        let (length, after) = rest.strip_prefix('$')?.split_once("\r\n")?;
        let length: usize = length.parse().ok()?;
        words.push(after.get(..length)?.to_owned());
        rest = after.get(length + 2..)?;
    }
    Some((words, rest.to_owned()))
}
