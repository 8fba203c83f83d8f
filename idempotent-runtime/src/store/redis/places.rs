//! The check whether the server has no place for another connection.
//!
//! Such a server sends an error before it gets any command, and closes the connection. A client that has already sent a
//! command finds the connection broken, and often does not see the reason.

use std::time::Duration;

use redis::ConnectionAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::sync::tokio::time::Instant;

/// The time in which such a server sends its error. A server with a free place sends nothing.
const TOLD_WITHIN: Duration = Duration::from_millis(200);

/// The time for which all calls share one result.
const KNOWN_FOR: Duration = Duration::from_millis(100);

/// The result of the last check.
#[derive(Default)]
pub(super) struct Places(Mutex<Option<(Instant, bool)>>);

impl Places {
    /// Returns whether the server at this address rejects connections because it has too many. Asks for the address
    /// only if the last result is too old, because Sentinels may have to be asked for it. Returns false for a server with
    /// TLS, which sends no such error in clear, and if there is no address.
    pub(super) async fn are_taken<E>(&self, address: impl Future<Output = Result<ConnectionAddr, E>>) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, are_taken)) = *last
            && at.elapsed() < KNOWN_FOR
        {
            return are_taken;
        }
        let told = match address.await {
            Ok(address) => timeout(TOLD_WITHIN, first_words(&address)).await.ok().flatten(),
            Err(_) => None,
        };
        let are_taken = told.is_some_and(|told| is_about_places(&String::from_utf8_lossy(&told)));
        *last = Some((Instant::now(), are_taken));
        are_taken
    }
}

/// Returns whether the text says that the server has too many clients.
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
