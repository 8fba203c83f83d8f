//! The named places at which a server can be told to die.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Mutex;

use axum::http::HeaderMap;
use idempotent_runtime::IdempotencyKey;
use idempotent_tests::lock;
use rustix::process::{Signal, getpid, kill_process};

/// A request names the step at which its server dies in this header.
pub const DIE_AT: &str = "x-die-at";

/// A step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The request has arrived.
    BeforeClaim,
    /// The key is claimed and the handler has done nothing yet.
    Claimed,
    /// The handler has begun, and has had no effect yet.
    InHandler,
    /// The handler has had its effect.
    EffectDone,
    /// The handler has answered, and nothing is recorded.
    BeforeRecord,
    /// The response is recorded.
    Recorded,
    /// The response leaves the router.
    BeforeSend,
}

impl Step {
    /// All steps, in the order in which a request passes them.
    pub const ALL: [Self; 7] = [
        Self::BeforeClaim,
        Self::Claimed,
        Self::InHandler,
        Self::EffectDone,
        Self::BeforeRecord,
        Self::Recorded,
        Self::BeforeSend,
    ];

    /// The name in the header.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeClaim => "before-claim",
            Self::Claimed => "claimed",
            Self::InHandler => "in-handler",
            Self::EffectDone => "effect-done",
            Self::BeforeRecord => "before-record",
            Self::Recorded => "recorded",
            Self::BeforeSend => "before-send",
        }
    }
}

impl FromStr for Step {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|step| step.name() == name).ok_or(())
    }
}

/// The steps at which requests in flight are to die, by key.
#[derive(Default)]
pub(super) struct Steps(Mutex<HashMap<String, Step>>);

impl Steps {
    pub(super) fn expect(&self, key: &str, headers: &HeaderMap) {
        let step = headers.get(DIE_AT).and_then(|step| step.to_str().ok()?.parse().ok());
        if let Some(step) = step {
            lock(&self.0).insert(key.to_owned(), step);
        }
    }

    /// Kills the process at this step if it is told to. Nothing is cleaned up, as after a power failure or the kernel's
    /// out-of-memory killer.
    pub(super) fn reach(&self, key: &str, step: Step) {
        if lock(&self.0).get(key) == Some(&step) {
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
        }
    }
}

pub(super) fn key_of(headers: &HeaderMap) -> Option<String> {
    let key = IdempotencyKey::from_header(headers.get("idempotency-key")?).ok()?;
    Some(key.as_str().to_owned())
}
