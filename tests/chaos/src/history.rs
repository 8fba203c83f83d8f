//! What happened in a run: requests and answers as the clients saw them, executions and effects as the ledger has them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What the handler's policy promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// `after_crash = "rerun"`: again after a crash, and the attempt tells.
    AtLeastOnce,
    /// `after_crash = "reject"`: never again after a crash.
    AtMostOnce,
    /// A `Tx`: the effect and the record commit together.
    ExactlyOnce,
    /// As `AtLeastOnce`, with a ttl as long as the lease: what was recorded is forgotten soon.
    ShortTtl,
    /// Under one scope, some requests run with a `Tx` and others without.
    Mixed,
}

impl Guarantee {
    /// The path of its handler.
    pub fn path(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "/at-least-once",
            Self::AtMostOnce => "/at-most-once",
            Self::ExactlyOnce => "/exactly-once",
            Self::ShortTtl => "/short-ttl",
            Self::Mixed => "/mixed",
        }
    }
}

/// One thing that was done to a server or the store.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it began and ended.
    pub time: (u64, u64),
    /// The server, unless it was done to all of them.
    pub server: Option<String>,
    /// What.
    pub kind: FaultKind,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process died.
    Died,
    /// One of the process's runtimes ended, and its handlers with it.
    RuntimeEnded,
    /// The process stood still.
    Stopped,
    /// The store stood still.
    StorePaused,
    /// The store was killed and started again.
    StoreRestarted,
    /// A replica became the store's master.
    StoreDemoted,
    /// The line to the store did not carry what it should.
    LineBroken,
    /// The store's disk was full.
    DiskFull,
    /// The machine itself ran no process, or its disk wrote nothing.
    MachineStalled,
}

/// One request, from the client's side.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it was sent, and when its end was known.
    pub time: (u64, u64),
    /// The key.
    pub key: String,
    /// The server's name.
    pub server: String,
    /// How the client behaved.
    pub manner: String,
    /// With which credentials and for which target it was sent, where its handler tells.
    pub origin: String,
    /// What came back; `None` when the line broke or the client left.
    pub answer: Option<Answer>,
}

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
    /// Whether it is marked as a replay.
    pub is_replay: bool,
}

/// What the handlers answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The execution that it tells of.
    pub execution: String,
    /// As that execution was told.
    pub attempt: u32,
    /// The credentials and the target that the handler saw, where it tells.
    #[serde(default)]
    pub origin: String,
    /// Makes the response large enough to be cut in the middle.
    pub padding: String,
}

impl Answer {
    /// The receipt of an execution that is told as done.
    pub fn receipt(&self) -> Option<Receipt> {
        (self.status == 201).then(|| serde_json::from_str(&self.body).ok()).flatten()
    }

    /// Whether it is the handler's own and recorded: every other such answer must be the same.
    pub fn is_final(&self) -> bool {
        matches!(self.status, 201 | 402)
    }

    /// The code of a rejection.
    pub fn code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        problem["code"].as_str().map(str::to_owned)
    }
}

/// The handler began to run.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Its name, unlike any other.
    pub id: String,
    /// The client's key.
    pub key: String,
    /// The server's name.
    pub server: String,
    /// As the handler was told.
    pub attempt: u32,
    /// When.
    pub begun_at: u64,
    /// When its work was done; `None` when its process or runtime ended before, or something made it stop.
    pub ended_at: Option<u64>,
    /// Whether it answered with a status that is not recorded, which frees the key and must leave no effect.
    pub gave_up: bool,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What each key's handler promises.
    pub keys: BTreeMap<String, Guarantee>,
    /// What is asked for under each key, for a person to read.
    pub orders: BTreeMap<String, String>,
    /// In any order.
    pub requests: Vec<Request>,
    /// Requests under these keys that other clients sent, or that ask for something else. In any order.
    pub intrusions: Vec<Request>,
    /// In any order.
    pub executions: Vec<Execution>,
    /// The execution of each effect, by key.
    pub effects: Vec<(String, String)>,
    /// In any order.
    pub faults: Vec<Fault>,
    /// What each key's retry gets when everything is over; a key that is missing never got an answer.
    pub finally: BTreeMap<String, Answer>,
}

impl History {
    /// The effects of a key, by execution.
    pub fn effects_of(&self, key: &str) -> Vec<&str> {
        self.effects.iter().filter(|(of, _)| of == key).map(|(_, execution)| execution.as_str()).collect()
    }

    /// All that concerns one key, in the order in which it happened, for a person to follow.
    pub fn of_key(&self, key: &str) -> String {
        let mut lines = Vec::new();
        let requests = self.requests.iter().chain(&self.intrusions);
        for request in requests.filter(|request| request.key == key) {
            let origin = if request.origin.is_empty() { String::new() } else { format!(", as {}", request.origin) };
            let sent = format!("request to {} ({}{origin})", request.server, request.manner);
            lines.push((request.time.0, sent));
            let end = match &request.answer {
                Some(answer) => format!("answer of {}: {answer}", request.server),
                None => format!("no answer of {}", request.server),
            };
            lines.push((request.time.1, end));
        }
        for execution in self.executions.iter().filter(|execution| execution.key == key) {
            lines.push((
                execution.begun_at,
                format!(
                    "execution {} begins on {}, attempt {}{}",
                    execution.id,
                    execution.server,
                    execution.attempt,
                    if execution.gave_up { ", and gives up" } else { "" }
                ),
            ));
            if let Some(ended_at) = execution.ended_at {
                lines.push((ended_at, format!("execution {} ends", execution.id)));
            }
        }
        let span = (
            lines.iter().map(|(at, _)| *at).min().unwrap_or_default(),
            lines.iter().map(|(at, _)| *at).max().unwrap_or_default(),
        );
        for fault in self.faults.iter().filter(|fault| fault.time.1 >= span.0 && fault.time.0 <= span.1) {
            let server = fault.server.as_deref().unwrap_or("all");
            let millis = (fault.time.1 - fault.time.0) / 1000;
            lines.push((fault.time.0, format!("fault: {:?} {server} for {millis} ms", fault.kind)));
        }
        lines.sort();
        let shown = lines.into_iter().map(|(at, line)| {
            let millis = micros_to_millis(at.saturating_sub(span.0));
            format!("  {millis:>10.3} ms  {line}\n")
        });
        let asked = [self.keys.get(key).map(|guarantee| format!("{guarantee:?}")), self.orders.get(key).cloned()];
        let asked = asked.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let finally = self.finally.get(key).map_or_else(|| "no answer".to_owned(), ToString::to_string);
        format!("  {asked}\n{}  effects: {:?}\n  finally: {finally}\n", shown.collect::<String>(), self.effects_of(key))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a run does not last for centuries")]
fn micros_to_millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let replay = if self.is_replay { ", a replay" } else { "" };
        match (self.receipt(), self.code()) {
            (Some(receipt), _) => {
                write!(f, "{} for {}, attempt {}{replay}", self.status, receipt.execution, receipt.attempt)
            }
            (None, Some(code)) => write!(f, "{} {code}{replay}", self.status),
            (None, None) => write!(f, "{}{replay}", self.status),
        }
    }
}
