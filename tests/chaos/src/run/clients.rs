//! The clients: they send every key several times, to any server, with both versions of HTTP, and are cut off anywhere,
//! until there is an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use idempotent_tests::lock;
use reqwest::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::fleet::Server;
use super::planned::{Origin, PlannedRequest};
use super::{Book, Fleet, Plan};
use crate::history::{Answer, Guarantee, Request};
use crate::now;
use crate::server::{DIE_AT, Step, VERSION, VERSIONS};

/// How many requests name a step to die at, in per mille of all requests for each unit of the fault's weight.
const DEATHS_PER_MILLE: u32 = 2;

/// How long a client waits for an answer before it drops the connection: a stopped server does not answer.
const HEARS_NOTHING: Duration = Duration::from_secs(2);

pub(super) struct Clients {
    plan: Plan,
    /// After this time, no client is cut off and no server is told to die.
    ends_at: Instant,
    is_ended: AtomicBool,
    fleet: Arc<Fleet>,
    book: Book,
    http1: Client,
    http2: Client,
    /// All keys so far.
    planned: Mutex<Vec<PlannedRequest>>,
}

impl Clients {
    pub(super) fn new(plan: Plan, fleet: Arc<Fleet>, book: Book) -> Self {
        let client = || Client::builder().retry(reqwest::retry::never()).timeout(HEARS_NOTHING);
        Self {
            ends_at: Instant::now() + plan.duration,
            is_ended: AtomicBool::new(false),
            plan,
            fleet,
            book,
            http1: client().http1_only().build().expect("a client"),
            http2: client().http2_prior_knowledge().build().expect("a client"),
            planned: Mutex::default(),
        }
    }

    /// Begins no new keys from now on.
    pub(super) fn end(&self) {
        self.is_ended.store(true, Ordering::Relaxed);
    }

    fn is_calm(&self) -> bool {
        self.is_ended.load(Ordering::Relaxed) || Instant::now() >= self.ends_at
    }

    /// Begins new keys until the end, each with duplicates at once, soon and late.
    pub(super) async fn play(&self) {
        let asking = stream::iter(std::iter::from_fn(|| (!self.is_calm()).then(|| self.next_key())));
        asking.for_each_concurrent(self.plan.keys_at_once, |(planned, random)| self.live(planned, random)).await;
    }

    fn next_key(&self) -> (PlannedRequest, Rng) {
        let mut all = lock(&self.planned);
        let number = all.len() as u64;
        let mut random = self.plan.random(1_000 + number);
        let planned = PlannedRequest::draw(number, &self.plan, &mut random);
        all.push(planned.clone());
        self.book.write(|history| {
            history.keys.insert(planned.key.clone(), planned.guarantee);
            history.orders.insert(planned.key.clone(), format!("{:?}", planned.order));
        });
        (planned, random)
    }

    /// Plays everything of one key: duplicates, and then retries until one of them gets an answer.
    async fn live(&self, planned: PlannedRequest, mut random: Rng) {
        let duplicates = (0..random.usize(1..5)).map(|_| {
            let (delay, random) = (Duration::from_millis(random.u64(..150)), random.fork());
            let planned = &planned;
            async move {
                tokio::time::sleep(delay).await;
                self.ask(planned, random).await
            }
        });
        let answers = join_all(duplicates.collect::<Vec<_>>()).await;
        let mut is_answered = answers.into_iter().flatten().any(|answer| is_an_end(&answer));
        if !is_answered {
            is_answered = self.until_answered(&planned, random.fork()).await.is_some();
        }
        if let Some(intruder) = planned.intruder.as_ref().filter(|_| is_answered) {
            for _ in 0..2 {
                self.intrude(&planned, intruder, &mut random).await;
            }
        }
    }

    /// Sends the intruder's request. The record exists now, and must not be sent to the intruder.
    async fn intrude(&self, planned: &PlannedRequest, intruder: &Origin, random: &mut Rng) {
        let server = self.fleet.server(random.usize(..self.fleet.len()));
        let sent = now();
        let answer = self.send(&self.http1, &server, planned, intruder, None, None).await;
        let (time, origin, manner) = ((sent, now()), intruder.told.clone(), "another client".to_owned());
        let request = Request { time, key: planned.key.clone(), server: server.name, manner, origin, answer };
        self.book.write(|history| history.intrusions.push(request));
    }

    /// Retries until there is an answer; `None` if it takes too long.
    async fn until_answered(&self, planned: &PlannedRequest, mut random: Rng) -> Option<Answer> {
        let begun = Instant::now();
        while begun.elapsed() < self.plan.patience {
            if let Some(answer) = self.ask(planned, random.fork()).await.filter(is_an_end) {
                return Some(answer);
            }
            tokio::time::sleep(Duration::from_millis(random.u64(50..200))).await;
        }
        None
    }

    /// Asks for every key again when all faults are over. The answers are final: every later retry of a key gets the
    /// same.
    pub(super) async fn ask_every_key_again(&self) {
        let planned = std::mem::take(&mut *lock(&self.planned));
        stream::iter(planned.into_iter().zip(0..))
            .for_each_concurrent(self.plan.keys_at_once, |(planned, number)| async move {
                if let Some(answer) = self.until_answered(&planned, self.plan.random(1_000_000 + number)).await {
                    self.book.write(|history| _ = history.finally.insert(planned.key, answer));
                }
            })
            .await;
    }

    async fn ask(&self, planned: &PlannedRequest, mut random: Rng) -> Option<Answer> {
        let server = self.fleet.server(random.usize(..self.fleet.len()));
        let is_calm = self.is_calm();
        let dies_at = (!is_calm && random.u32(..1_000) < self.plan.faults.die_at_step * DEATHS_PER_MILLE)
            .then(|| Step::ALL[random.usize(..Step::ALL.len())]);
        let is_cut = !is_calm && random.u32(..100) < self.plan.faults.cut_percent;
        let manner = Manner::draw(is_cut, &mut random);
        let version = (planned.guarantee == Guarantee::Mixed).then(|| VERSIONS[random.usize(..VERSIONS.len())]);
        let ask_by = |client| self.send(client, &server, planned, &planned.owner, dies_at, version);
        let sent = now();
        let answer = match manner {
            Manner::Http1 => ask_by(&self.http1).await,
            Manner::Http2 => ask_by(&self.http2).await,
            Manner::Http1LeavesAfter(time) => leave(time, ask_by(&self.http1)).await,
            Manner::Http2LeavesAfter(time) => leave(time, ask_by(&self.http2)).await,
            Manner::CutInRequest | Manner::CutInResponse => {
                // This client does not evaluate the answer.
                let _ = leave(HEARS_NOTHING, cut(&server, planned, manner)).await;
                None
            }
        };
        let mut manner = format!("{manner:?}");
        manner.extend(version.map(|version| format!(", {version}")));
        manner.extend(dies_at.map(|step| format!(", dies at {}", step.name())));
        let request = Request {
            time: (sent, now()),
            key: planned.key.clone(),
            server: server.name,
            manner,
            origin: planned.owner.told.clone(),
            answer: answer.clone(),
        };
        self.book.write(|history| history.requests.push(request));
        answer
    }

    async fn send(
        &self,
        client: &Client,
        server: &Server,
        planned: &PlannedRequest,
        origin: &Origin,
        dies_at: Option<Step>,
        version: Option<&str>,
    ) -> Option<Answer> {
        let url = format!("http://{}{}", server.address, planned.path);
        let mut request = client.post(url).header("idempotency-key", &planned.key).json(&planned.order);
        for (name, value) in &origin.headers {
            request = request.header(*name, value);
        }
        if let Some(version) = version {
            request = request.header(VERSION, version);
        }
        if let Some(step) = dies_at {
            request = request.header(DIE_AT, step.name());
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let is_replay = response.headers().contains_key("idempotent-replayed");
        let body = response.text().await.ok()?;
        Some(Answer { status, body, is_replay })
    }
}

/// Whether a client accepts the answer as final.
fn is_an_end(answer: &Answer) -> bool {
    answer.is_final() || answer.code().as_deref() == Some("outcome_unknown")
}

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Http1,
    Http2,
    /// The connection closes after this time.
    Http1LeavesAfter(Duration),
    /// The stream is reset after this time.
    Http2LeavesAfter(Duration),
    /// Only a part of the request is sent.
    CutInRequest,
    /// Only a part of the response is read, and the connection is reset.
    CutInResponse,
}

impl Manner {
    fn draw(is_cut: bool, random: &mut Rng) -> Self {
        let time = Duration::from_millis(random.u64(..80));
        match (is_cut, random.u32(..4)) {
            (false, 0..2) => Self::Http1,
            (false, _) => Self::Http2,
            (true, 0) => Self::Http1LeavesAfter(time),
            (true, 1) => Self::Http2LeavesAfter(time),
            (true, 2) => Self::CutInRequest,
            (true, _) => Self::CutInResponse,
        }
    }
}

async fn leave<T>(after: Duration, asking: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::time::timeout(after, asking).await.ok().flatten()
}

/// Breaks the connection in the middle of the request or of the response.
async fn cut(server: &Server, planned: &PlannedRequest, manner: Manner) -> Option<()> {
    let body = serde_json::to_string(&planned.order).ok()?;
    let headers: Vec<_> = planned.owner.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let headers = headers.concat();
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: chaos\r\nContent-Type: application/json\r\nIdempotency-Key: {}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        planned.path,
        planned.key,
        body.len()
    );
    let mut stream = TcpStream::connect(&server.address).await.ok()?;
    if matches!(manner, Manner::CutInRequest) {
        stream.write_all(&request.as_bytes()[..request.len() - body.len() / 2]).await.ok()?;
        return None;
    }
    stream.write_all(request.as_bytes()).await.ok()?;
    stream.read_exact(&mut [0; 40]).await.ok()?;
    // Closing a socket with unread data resets the connection.
    Some(())
}
