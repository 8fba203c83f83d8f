//! Breaks everything around the guarded handlers, and checks by effects and answers whether the guarantees held.
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

/// How long a process that died or was stopped keeps its keys. The handlers' policies say the same.
pub const LEASE: Duration = Duration::from_secs(3);

/// Microseconds since 1970. The driver and its servers use the same clock, because they run on one machine.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
