//! Whether the server has no place for another connection.
//!
//! It says so before it is asked anything, and closes the connection. A client that has sent something by then finds the connection
//! broken, and often no reason.

use std::time::Duration;

use redis::ConnectionAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::sync::tokio::time::Instant;

/// A server that has a place says nothing.
const TOLD_WITHIN: Duration = Duration::from_millis(200);

/// For this long, an answer is that of all calls.
const KNOWN_FOR: Duration = Duration::from_millis(100);

/// What the last look at the server's places found.
#[derive(Default)]
pub(super) struct Places(Mutex<Option<(Instant, bool)>>);

impl Places {
    /// Whether the server at this address rejects connections because it has too many. One that talks TLS does not say so.
    pub(super) async fn are_taken(&self, address: &ConnectionAddr) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, are_taken)) = *last
            && at.elapsed() < KNOWN_FOR
        {
            return are_taken;
        }
        let told = timeout(TOLD_WITHIN, first_words(address)).await.ok().flatten();
        let are_taken = told.is_some_and(|told| is_about_places(&String::from_utf8_lossy(&told)));
        *last = Some((Instant::now(), are_taken));
        are_taken
    }
}

/// Whether the server says that it has too many clients.
pub(super) fn is_about_places(text: &str) -> bool {
    text.contains("max number of clients")
}

async fn first_words(address: &ConnectionAddr) -> Option<Vec<u8>> {
    let mut told = vec![0; 100];
    let length = match address {
        ConnectionAddr::Tcp(host, port) => {
            TcpStream::connect((host.as_str(), *port)).await.ok()?.read(&mut told).await.ok()?
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => UnixStream::connect(path).await.ok()?.read(&mut told).await.ok()?,
        _ => return None,
    };
    told.truncate(length);
    Some(told)
}
