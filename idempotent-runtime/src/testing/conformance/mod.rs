//! The rules of the [`Store`](crate::store::Store) contract, one function for each rule. Run them against a store of
//! your own.
//!
//! [`all`] runs every rule that holds for each store. Every call uses new keys and deletes no other live data, so you
//! can test a store that has data. Rules about time wait with [`tokio::time`]. A store that uses that clock can be
//! tested under `tokio::time::pause`. Every other store waits some seconds in total.
//!
//! Each function panics with the expected and the actual result.
//!
//! # A store of your own
//!
//! ```
//! use std::collections::{BTreeMap, HashSet};
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! use idempotent_runtime::store::*;
//! use idempotent_runtime::testing::conformance;
//! use idempotent_runtime::{Fingerprint, Record, RecordKey};
//! use tokio::time::Instant;
//!
//! /// Everything under one lock.
//! #[derive(Default)]
//! struct SimpleStore(Mutex<BTreeMap<RecordKey, Row>>, Mutex<HashSet<Token>>);
//!
//! struct Row {
//!     token: Token,
//!     fingerprint: Fingerprint,
//!     attempt: u32,
//!     lease_until: Instant,
//!     ttl: Duration,
//!     /// `None` means never.
//!     expires_at: Option<Instant>,
//!     record: Option<Record>,
//! }
//!
//! impl Row {
//!     fn is_alive(&self) -> bool {
//!         self.expires_at.is_none_or(|at| at > Instant::now())
//!     }
//!
//!     fn state(&self) -> StoredState {
//!         match &self.record {
//!             Some(record) => StoredState::Completed(record.clone()),
//!             None => StoredState::Claimed(
//!                 ExistingClaim::new(self.token, self.fingerprint)
//!                     .with_attempt(self.attempt)
//!                     .with_lease(self.lease_until > Instant::now())
//!                     .with_expiry(self.expires_at.is_some()),
//!             ),
//!         }
//!     }
//! }
//!
//! impl SimpleStore {
//!     /// Calls `change` with the live row of the key, if `which` returns true for it.
//!     fn with<T>(&self, key: &RecordKey, which: impl Fn(&Row) -> bool, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
//!         let mut rows = self.0.lock().unwrap();
//!         rows.get_mut(key).filter(|row| row.is_alive() && which(row)).map(change)
//!     }
//!
//!     fn entry(key: &RecordKey, row: &Row) -> Entry {
//!         let now = Instant::now();
//!         let state = match &row.record {
//!             None => EntryState::Claimed {
//!                 attempt: row.attempt,
//!                 lease: (row.lease_until > now).then(|| row.lease_until - now),
//!                 token: row.token,
//!             },
//!             Some(record) => EntryState::Completed {
//!                 status: record.status,
//!                 body_bytes: record.body_bytes().map(|body| body.len() as u64),
//!                 recorded_at: record.recorded_at,
//!             },
//!         };
//!         Entry::new(key.clone(), row.fingerprint, state, row.expires_at.map(|at| at - now))
//!     }
//! }
//!
//! impl Store for SimpleStore {
//!     async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
//!         let now = Instant::now();
//!         let mut rows = self.0.lock().unwrap();
//!         let row = rows.get_mut(key).filter(|row| row.is_alive());
//!         let attempt = match decide(row.as_deref().map(Row::state), &request) {
//!             Decision::Answer(claim) => return Ok(claim),
//!             Decision::Keep { fingerprint, .. } => {
//!                 row.expect("it has a claim").expires_at = None;
//!                 return Ok(Claim::Lapsed { fingerprint });
//!             }
//!             Decision::Take { .. } if self.1.lock().unwrap().contains(&request.token) => {
//!                 return Err(StoreError::unavailable("the claim was released before it arrived"));
//!             }
//!             Decision::Take { attempt } => attempt,
//!         };
//!         let ClaimRequest { token, fingerprint, lease, ttl, after_crash, .. } = request;
//!         let lease_until = now + lease;
//!         let expires_at = (after_crash == AfterCrash::Rerun).then(|| now + ttl);
//!         rows.insert(key.clone(), Row { token, fingerprint, attempt, lease_until, ttl, expires_at, record: None });
//!         Ok(Claim::Acquired { attempt })
//!     }
//!
//!     async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
//!         let renewed = self.with(key, |row| row.token == token && row.record.is_none(), |row| {
//!             row.lease_until = Instant::now() + lease;
//!             row.expires_at = row.expires_at.map(|_| Instant::now() + row.ttl);
//!         });
//!         Ok(if renewed.is_some() { Held::Yes } else { Held::No })
//!     }
//!
//!     async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
//!         let completed = self.with(key, |row| row.token == token, |row| {
//!             if row.record.is_none() {
//!                 row.record = Some(record);
//!                 row.expires_at = Some(Instant::now() + ttl);
//!             }
//!         });
//!         Ok(if completed.is_some() { Held::Yes } else { Held::No })
//!     }
//!
//!     async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
//!         let released = self.with(key, |row| row.token == token && row.record.is_none(), |row| {
//!             row.expires_at = Some(Instant::now());
//!         });
//!         // A store that lives for long forgets it after a day.
//!         self.1.lock().unwrap().insert(token);
//!         Ok(if released.is_some() { Held::Yes } else { Held::No })
//!     }
//! }
//!
//! impl StoreAdmin for SimpleStore {
//!     async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
//!         Ok(self.with(key, |_| true, |row| Self::entry(key, row)))
//!     }
//!
//!     async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
//!         Ok(self.with(key, |_| true, |row| row.expires_at = Some(Instant::now())).is_some())
//!     }
//!
//!     async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
//!         let resolved = self.with(key, |_| true, |row| match &resolution {
//!             Resolution::Executed { token: own, .. } if row.record.is_some() && row.token == *own => Resolved::Yes,
//!             _ if row.token != token || row.record.is_some() => Resolved::ChangedHands,
//!             _ if row.lease_until > Instant::now() => Resolved::StillRunning,
//!             Resolution::Executed { token, record, ttl, .. } => {
//!                 (row.token, row.record) = (*token, Some(record.clone()));
//!                 row.expires_at = Some(Instant::now() + *ttl);
//!                 Resolved::Yes
//!             }
//!             // Not executed.
//!             _ => {
//!                 row.expires_at = Some(Instant::now());
//!                 Resolved::Yes
//!             }
//!         });
//!         Ok(resolved.unwrap_or(Resolved::ChangedHands))
//!     }
//!
//!     async fn delete_expired(&self) -> Result<usize, StoreError> {
//!         let mut rows = self.0.lock().unwrap();
//!         let before = rows.len();
//!         rows.retain(|_, row| row.is_alive());
//!         Ok(before - rows.len())
//!     }
//!
//!     async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
//!         let rows = self.0.lock().unwrap();
//!         let from = cursor.map_or(String::new(), |cursor| cursor.as_str().to_owned());
//!         let mut living = rows.iter().filter(|(_, row)| row.is_alive());
//!         let mut after = living.by_ref().skip_while(|(key, _)| key.as_str() < from.as_str()).peekable();
//!         let entries = after.by_ref().take(limit).map(|(key, row)| Self::entry(key, row)).collect();
//!         let next = after.peek().map(|(key, _)| Cursor::new(key.as_str()));
//!         Ok(Page::new(entries, next))
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! conformance::all(SimpleStore::default()).await;
//! # });
//! ```

pub(crate) mod bounds;
pub(crate) mod claims;
pub(crate) mod fixtures;
pub(crate) mod given_back;
pub(crate) mod leases;
pub(crate) mod operators;
pub(crate) mod records;
pub(crate) mod resolutions;
pub(crate) mod unknown;

use std::sync::Arc;

use crate::store::contract::StoreAdmin;
pub use crate::testing::conformance::bounds::*;
pub use crate::testing::conformance::claims::*;
pub use crate::testing::conformance::given_back::*;
pub use crate::testing::conformance::leases::*;
pub use crate::testing::conformance::operators::*;
pub use crate::testing::conformance::records::*;
pub use crate::testing::conformance::resolutions::*;
pub use crate::testing::conformance::unknown::*;

/// Runs every rule that holds for each store.
///
/// # Panics
///
/// Panics if the store breaks a rule.
pub async fn all<S: StoreAdmin>(store: S) {
    let store = Arc::new(store);
    the_first_claim_is_acquired_and_the_second_is_in_flight(&store).await;
    of_64_concurrent_claims_one_is_acquired(&store).await;
    a_retried_claim_recognises_its_token(&store).await;
    a_record_comes_back_whole(&store).await;
    every_status_comes_back(&store).await;
    a_second_completion_changes_nothing(&store).await;
    a_record_is_not_touched_by_its_token(&store).await;
    unknown_key_has_no_entry(&store).await;
    expired_lease_is_taken_over_as_next_attempt(&store).await;
    a_renewal_keeps_the_claim(&store).await;
    renewals_of_many_keys_are_answered_one_by_one(&store).await;
    a_lease_of_zero_lapses_at_once(&store).await;
    a_stale_token_can_neither_renew_complete_nor_release(&store).await;
    a_claim_that_was_given_back_does_not_arrive(&store).await;
    others_let_no_claim_arrive_that_was_given_back(&store).await;
    a_purge_lets_no_claim_arrive_that_was_given_back(&store).await;
    a_claim_given_back_beside_another_does_not_arrive(&store).await;
    a_release_beside_its_claim_leaves_no_claim(&store).await;
    another_fingerprint_never_takes_over(&store).await;
    a_takeover_replaces_the_former_fingerprint(&store).await;
    reject_never_takes_over(&store).await;
    late_holder_completes_if_not_taken_over(&store).await;
    a_release_frees_the_key_and_the_attempts(&store).await;
    a_record_expires(&store).await;
    extend_moves_the_end_of_records_alone(&store).await;
    claim_expires_ttl_after_last_renewal(&store).await;
    an_unknown_outcome_never_expires(&store).await;
    what_was_rejected_once_stays_rejected(&store).await;
    a_rerun_takes_an_unknown_outcome_over(&store).await;
    unknown_outcomes_are_counted(&store).await;
    different_keys_never_meet(&store).await;
    a_purge_removes_claims_and_records(&store).await;
    a_resolution_records_what_was_executed(&store).await;
    a_resolution_frees_what_was_not_executed(&store).await;
    a_late_holder_does_not_get_a_resolution(&store).await;
    a_running_claim_is_not_resolved(&store).await;
    a_resolution_needs_the_token_that_was_looked_at(&store).await;
    of_many_resolutions_one_wins(&store).await;
    a_renewal_beside_a_resolution_excludes_it(&store).await;
    a_resolved_record_expires(&store).await;
    get_describes_entry(&store).await;
    a_listing_shows_every_entry_once(&store).await;
    a_listing_of_claims_shows_no_ended_claim(&store).await;
    a_listing_of_claims_shows_no_record(&store).await;
    delete_expired_removes_expired_only(&store).await;
}
