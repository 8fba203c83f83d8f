//! The history of a run: requests and answers as the clients saw them, executions and effects as the ledger contains
//! them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What the handler's policy promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// `after_crash = "rerun"`: the handler runs again after a crash, and the attempt number says so.
    AtLeastOnce,
    /// `after_crash = "reject"`: the handler never runs again after a crash.
    AtMostOnce,
    /// A `Tx`: the effect and the record commit together.
    ExactlyOnce,
    /// As `AtLeastOnce`, with a ttl as long as the lease: the record expires soon.
    ShortTtl,
    /// Some requests run with a `Tx` and others without, in one scope.
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

/// One fault of a server or of the store.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it began and ended.
    pub time: (u64, u64),
    /// The server, unless the fault affected all of them.
    pub server: Option<String>,
    /// The kind of the fault.
    pub kind: FaultKind,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process died.
    Died,
    /// One of the process's runtimes ended, and its handlers with it.
    RuntimeEnded,
    /// The process was stopped.
    Stopped,
    /// The store was stopped.
    StorePaused,
    /// The store was killed and started again.
    StoreRestarted,
    /// A replica became the store's master.
    StoreDemoted,
    /// The connection to the store was disturbed.
    LineBroken,
    /// The store's disk was full.
    DiskFull,
    /// The machine itself ran no process, or its disk wrote nothing, for a while.
    MachineStalled,
}

/// One request, from the client's side.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it was sent, and when its end was observed.
    pub time: (u64, u64),
    /// The key.
    pub key: String,
    /// The server's name.
    pub server: String,
    /// How the client behaved.
    pub manner: String,
    /// With which credentials and for which target it was sent, if its handler reports that.
    pub origin: String,
    /// The answer; `None` if the connection broke or the client left.
    pub answer: Option<Answer>,
}

/// A complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
    /// Whether it is marked as a replay.
    pub is_replay: bool,
}

/// The body of the handlers' responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The execution that it reports.
    pub execution: String,
    /// The attempt number of that execution.
    pub attempt: u32,
    /// The credentials and the target that the handler saw, if it reports them.
    #[serde(default)]
    pub origin: String,
    /// Makes the response large enough to be cut off in the middle.
    pub padding: String,
}

impl Answer {
    /// The receipt, if the answer reports a successful execution.
    pub fn receipt(&self) -> Option<Receipt> {
        (self.status == 201).then(|| serde_json::from_str(&self.body).ok()).flatten()
    }

    /// Whether this is a recorded response of the handler: every other such answer must be equal.
    pub fn is_final(&self) -> bool {
        matches!(self.status, 201 | 402)
    }

    /// The code of a rejection.
    pub fn code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        problem["code"].as_str().map(str::to_owned)
    }
}

/// One execution of the handler.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Its unique name.
    pub id: String,
    /// The client's key.
    pub key: String,
    /// The server's name.
    pub server: String,
    /// The attempt number that the handler got.
    pub attempt: u32,
    /// When the handler began.
    pub begun_at: u64,
    /// When its work was done; `None` if its process or runtime ended before, or something stopped the handler.
    pub ended_at: Option<u64>,
    /// Whether the handler answered with a status that is not recorded. This frees the key, and there must be no
    /// effect.
    pub gave_up: bool,
}

/// The history of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The guarantee of each key's handler.
    pub keys: BTreeMap<String, Guarantee>,
    /// The order of each key, for people.
    pub orders: BTreeMap<String, String>,
    /// All requests, in any order.
    pub requests: Vec<Request>,
    /// Requests under these keys by other clients or for another target, in any order.
    pub intrusions: Vec<Request>,
    /// All executions, in any order.
    pub executions: Vec<Execution>,
    /// The execution of each effect, by key.
    pub effects: Vec<(String, String)>,
    /// All faults, in any order.
    pub faults: Vec<Fault>,
    /// What a retry of each key gets at the end of the run. A key that never got an answer is missing.
    pub finally: BTreeMap<String, Answer>,
}

impl History {
    /// The effects of a key, by their executions.
    pub fn effects_of(&self, key: &str) -> Vec<&str> {
        self.effects.iter().filter(|(of, _)| of == key).map(|(_, execution)| execution.as_str()).collect()
    }

    /// Everything that concerns one key, in the order in which it happened, for people.
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
