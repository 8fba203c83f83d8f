//! A proxy in front of a server, which delays connections, stops them, loses answers, or breaks them.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::lock;

/// What the proxy does, with open connections and with new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything.
    Passes,
    /// Passes everything after this delay, in both directions.
    Delays(Duration),
    /// Passes nothing until this mode ends, and then everything that was sent meanwhile.
    Stops,
    /// Passes requests and drops their answers. A connection that has lost an answer breaks when the mode ends: the
    /// client must not take the next answer for the lost one.
    LosesAnswers,
    /// Breaks open connections, and every new one.
    IsCut,
}

/// What happens to the next COMMIT on a connection to PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The COMMIT arrives and takes effect; its answer is lost.
    Answer,
    /// The COMMIT never arrives.
    Request,
}

/// A proxy that listens on a socket in front of a server's socket.
pub struct Proxy {
    entrance: Entrance,
    mode: watch::Sender<Mode>,
    strandings: watch::Sender<usize>,
    breaks: watch::Sender<usize>,
    line: Line,
    task: JoinHandle<()>,
}

enum Entrance {
    Folder(TempDir),
    Address(String),
}

#[derive(Clone)]
struct Line {
    mode: watch::Receiver<Mode>,
    strandings: watch::Receiver<usize>,
    breaks: watch::Receiver<usize>,
    loss: Arc<Mutex<Option<Loss>>>,
    requests: Arc<AtomicUsize>,
    /// The connection that sends this text next is stranded: it carries nothing any more.
    stranding: Arc<Mutex<Option<&'static str>>>,
    target: Arc<Mutex<Target>>,
}

#[derive(Clone)]
enum Target {
    Socket(PathBuf),
    Address(String),
}

/// A `Sync` without a statement, by which sqlx asks PostgreSQL whether it answers.
const PING: &[u8] = b"S\0\0\0\x04";

/// The name of PostgreSQL's socket.
const SOCKET: &str = ".s.PGSQL.5432";

impl Proxy {
    /// Starts a proxy in front of the PostgreSQL whose socket is in `folder`.
    ///
    /// # Panics
    ///
    /// When no socket can be made.
    pub fn start(folder: &Path) -> Self {
        let entrance = TempDir::with_prefix("proxy").expect("a temporary folder");
        let listener = UnixListener::bind(entrance.path().join(SOCKET)).expect("a socket");
        let (mode, strandings, breaks, line) = line(Target::Socket(folder.join(SOCKET)));
        let accepting = line.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(Box::new(client), accepting.clone()));
            }
        });
        Self { entrance: Entrance::Folder(entrance), mode, strandings, breaks, line, task }
    }

    /// Starts a proxy in front of the server at `host:port`.
    ///
    /// # Panics
    ///
    /// When loopback has no free port.
    pub async fn to(address: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let entrance = listener.local_addr().expect("a bound listener has an address").to_string();
        let (mode, strandings, breaks, line) = line(Target::Address(address.into()));
        let task = tokio::spawn(accept(listener, line.clone()));
        Self { entrance: Entrance::Address(entrance), mode, strandings, breaks, line, task }
    }

    /// Rejects new connections at the proxy's address, and breaks the open ones.
    pub async fn close(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.set(Mode::IsCut);
    }

    /// Accepts connections again at the address where [`close`](Self::close) rejected them.
    ///
    /// # Panics
    ///
    /// When another program listens at that address.
    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address()).await.expect("the port is free");
        self.set(Mode::Passes);
        self.task = tokio::spawn(accept(listener, self.line.clone()));
    }

    /// The folder of the socket, for clients of PostgreSQL.
    ///
    /// # Panics
    ///
    /// When the proxy listens on an address.
    pub fn folder(&self) -> &Path {
        let Entrance::Folder(folder) = &self.entrance else { panic!("it has an address") };
        folder.path()
    }

    /// The address on which it listens, as `host:port`.
    ///
    /// # Panics
    ///
    /// When the proxy listens on a socket.
    pub fn address(&self) -> &str {
        let Entrance::Address(address) = &self.entrance else { panic!("it has a folder") };
        address
    }

    /// Applies this mode from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Strands the open connections: they carry nothing any more, and none is closed, as with a router that has lost
    /// its state. New connections pass.
    pub fn strand(&self) {
        self.strandings.send_modify(|strandings| *strandings += 1);
    }

    /// Breaks the open connections, whatever is under way on them. New connections pass.
    pub fn break_open(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Strands the one connection that sends this text next. The text does not arrive.
    pub fn strand_before(&self, text: &'static str) {
        *lock(&self.line.stranding) = Some(text);
    }

    /// Loses the next COMMIT or its answer.
    pub fn lose(&self, loss: Loss) {
        *lock(&self.line.loss) = Some(loss);
    }

    /// Whether the [`Loss`] has happened.
    pub fn has_lost(&self) -> bool {
        lock(&self.line.loss).is_none()
    }

    /// How often a client of PostgreSQL has sent something and waited for its answer. The pings of sqlx do not count.
    pub fn requests(&self) -> usize {
        self.line.requests.load(Ordering::Relaxed)
    }

    /// Leads new connections to another server.
    pub fn lead_to(&self, address: impl Into<String>) {
        *lock(&self.line.target) = Target::Address(address.into());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn line(target: Target) -> (watch::Sender<Mode>, watch::Sender<usize>, watch::Sender<usize>, Line) {
    let (sender, mode) = watch::channel(Mode::Passes);
    let (strand, strandings) = watch::channel(0);
    let (break_open, breaks) = watch::channel(0);
    let target = Arc::new(Mutex::new(target));
    let (loss, requests, stranding) = (Arc::default(), Arc::default(), Arc::default());
    let line = Line { mode, strandings, breaks, loss, requests, stranding, target };
    (sender, strand, break_open, line)
}

async fn accept(listener: TcpListener, line: Line) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(relay(Box::new(client), line.clone()));
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Runs until one side closes or the proxy breaks the connection. Both connections close when it returns.
async fn relay(client: Box<dyn Stream>, line: Line) {
    let target = lock(&line.target).clone();
    let server: io::Result<Box<dyn Stream>> = match target {
        Target::Socket(socket) => UnixStream::connect(socket).await.map(|stream| Box::new(stream) as Box<dyn Stream>),
        Target::Address(address) => TcpStream::connect(address).await.map(|stream| Box::new(stream) as Box<dyn Stream>),
    };
    // The client's connection breaks, as a connection to a server that is down does.
    let Ok(server) = server else { return };
    let ((from_client, to_client), (from_server, to_server)) = (io::split(client), io::split(server));
    let commit_has_no_answer = AtomicBool::new(false);
    let mut strandings = line.strandings.clone();
    strandings.mark_unchanged();
    let mut breaks = line.breaks.clone();
    breaks.mark_unchanged();
    // These futures own the streams, so the streams stay open while a stranded connection is pending.
    let mut requests = pin!(carry_requests(from_client, to_server, line.clone(), &commit_has_no_answer));
    let mut answers = pin!(carry_answers(from_server, to_client, line.mode, &commit_has_no_answer));
    tokio::select! {
        biased;
        // First: a mode that is set after the break has no effect on this connection.
        Ok(()) = breaks.changed() => {}
        () = &mut requests => {}
        () = &mut answers => {}
        Ok(()) = strandings.changed() => std::future::pending().await,
    }
}

async fn carry_requests(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    line: Line,
    commit_has_no_answer: &AtomicBool,
) {
    let (mut buffer, mut mode) = (vec![0; 65536], line.mode);
    while let Some(length) = read(&mut from, &mut buffer, &mut mode).await {
        let sent = &buffer[..length];
        line.requests.fetch_add(usize::from(sent != PING), Ordering::Relaxed);
        if sent.windows(7).any(|bytes| bytes == b"COMMIT\0") {
            match lock(&line.loss).take() {
                Some(Loss::Request) => return,
                Some(Loss::Answer) => commit_has_no_answer.store(true, Ordering::Relaxed),
                None => {}
            }
        }
        let strands = |text: &mut &str| sent.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        if lock(&line.stranding).take_if(|text| strands(text)).is_some() {
            return std::future::pending().await;
        }
        if !may_pass(&mut mode).await || to.write_all(sent).await.is_err() {
            return;
        }
    }
}

async fn carry_answers(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    commit_has_no_answer: &AtomicBool,
) {
    let mut buffer = vec![0; 65536];
    while let Some(length) = read(&mut from, &mut buffer, &mut mode).await {
        if commit_has_no_answer.load(Ordering::Relaxed) {
            return;
        }
        if *mode.borrow() == Mode::LosesAnswers {
            let _ = mode.wait_for(|&mode| mode != Mode::LosesAnswers).await;
            return;
        }
        if !may_pass(&mut mode).await || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Reads what arrives next; `None` at the end of the stream, or when connections are cut.
async fn read(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    mode: &mut watch::Receiver<Mode>,
) -> Option<usize> {
    tokio::select! {
        read = from.read(buffer) => read.ok().filter(|&length| length > 0),
        _ = mode.wait_for(|&mode| mode == Mode::IsCut) => None,
    }
}

/// Waits as long as the mode holds back data; false when connections are cut.
async fn may_pass(mode: &mut watch::Receiver<Mode>) -> bool {
    let Ok(now) = mode.wait_for(|&mode| mode != Mode::Stops).await.map(|mode| *mode) else { return false };
    if let Mode::Delays(delay) = now {
        tokio::time::sleep(delay).await;
    }
    now != Mode::IsCut
}
