//! A line to PostgreSQL that breaks at COMMIT.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What becomes of the next COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It arrives, takes effect, and its answer is lost.
    Answer,
    /// It never arrives.
    Request,
}

/// A socket in front of a server's own.
pub struct Proxy {
    folder: TempDir,
    loss: Arc<Mutex<Option<Loss>>>,
    task: JoinHandle<()>,
}

/// What a server's socket is named.
const SOCKET: &str = ".s.PGSQL.5432";

impl Proxy {
    /// In front of the server whose socket lies in `folder`.
    ///
    /// # Panics
    ///
    /// When no socket can be made.
    pub fn start(server: &Path) -> Self {
        let folder = TempDir::with_prefix("proxy").expect("a temporary folder");
        let listener = UnixListener::bind(folder.path().join(SOCKET)).expect("a socket");
        let loss = Arc::<Mutex<Option<Loss>>>::default();
        let (server, shared) = (server.join(SOCKET), Arc::clone(&loss));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.expect("the server listens");
                tokio::spawn(relay(client, server, Arc::clone(&shared)));
            }
        });
        Self { folder, loss, task }
    }

    /// Where its socket lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Breaks the line of the next COMMIT.
    pub fn lose(&self, loss: Loss) {
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = Some(loss);
    }

    /// Whether the loss has happened.
    pub fn has_lost(&self) -> bool {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until one side closes, or the loss has come; both lines break with the end.
async fn relay(mut client: UnixStream, mut server: UnixStream, loss: Arc<Mutex<Option<Loss>>>) {
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    let mut answer_is_lost = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let sent = &from_client[..length];
                if sent.windows(7).any(|bytes| bytes == b"COMMIT\0") {
                    match loss.lock().unwrap_or_else(PoisonError::into_inner).take() {
                        Some(Loss::Request) => return,
                        Some(Loss::Answer) => answer_is_lost = true,
                        None => {}
                    }
                }
                if server.write_all(sent).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                if answer_is_lost || client.write_all(&from_server[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
