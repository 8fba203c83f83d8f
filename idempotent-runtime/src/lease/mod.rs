//! The claims that this process holds, and their renewal.
//!
//! ```text
//! LeaseRenewer: leases by due time and by key ──a thread of the library──▶ batches ──deliver──▶ a live runtime ──▶ the store
//! ```

pub(crate) mod delivery;
pub(crate) mod ended_claim;
pub(crate) mod pending_claims;
pub(crate) mod reclaim;
pub(crate) mod renewer;
pub(crate) mod schedule;
pub(crate) mod state;
pub(crate) mod step_records;
