//! Breaks everything around the guarded handlers, and checks by their effects and answers whether they kept their guarantees.
//!
//! ```text
//! clients ──▶ 1 to 3 server processes ──▶ a store          faults: see `run::FaultWeights` and `family::Family`
//!    │                 └──▶ ledger: what was executed
//!    └──▶ history ◀────────────┘ ──▶ checker ──▶ violations, each with the history of its key
//! ```

pub mod checker;
pub mod family;
pub mod history;
pub mod run;
pub mod server;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a process that died or stands still keeps its keys; as the handlers' policies say.
pub const LEASE: Duration = Duration::from_secs(3);

/// Microseconds since 1970: one clock for the driver and its servers, which run on one machine.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
