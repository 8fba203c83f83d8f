//! Every store follows every rule of the `Store` contract.

use std::sync::Arc;

use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore};
use idempotent_runtime::testing::conformance;
use idempotent_tests::redis::{RedisCluster, RedisServer};

/// Defines a test for each rule. `$store` gives a store and a value that must outlive it.
macro_rules! rules_for {
    ($name:ident, $store:expr, [$($rule:ident),* $(,)?]) => {
        mod $name {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let (store, _outlives) = $store.await;
                conformance::$rule(&Arc::new(store)).await;
            })*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn all_of_them_in_one_store_twice() {
                let (store, _outlives) = $store.await;
                let store = Arc::new(store);
                for _ in 0..2 {
                    conformance::all(Arc::clone(&store)).await;
                }
            }
        }
    };
}

macro_rules! stores {
    ($rules:tt) => {
        rules_for!(memory, memory(), $rules);
        rules_for!(sqlite, idempotent_tests::stores::sqlite(), $rules);
        rules_for!(postgres, postgres(), $rules);
        rules_for!(redis, redis(), $rules);
        rules_for!(redis_cluster, redis_cluster(), $rules);
    };
}

stores!([
    the_first_claim_is_acquired_and_the_second_is_in_flight,
    of_64_concurrent_claims_one_is_acquired,
    a_retried_claim_recognises_its_token,
    a_record_comes_back_whole,
    every_status_comes_back,
    a_second_completion_changes_nothing,
    a_record_is_not_touched_by_its_token,
    unknown_key_has_no_entry,
    expired_lease_is_taken_over_as_next_attempt,
    a_renewal_keeps_the_claim,
    renewals_of_many_keys_are_answered_one_by_one,
    a_lease_of_zero_lapses_at_once,
    a_stale_token_can_neither_renew_complete_nor_release,
    a_claim_that_was_given_back_does_not_arrive,
    others_let_no_claim_arrive_that_was_given_back,
    a_purge_lets_no_claim_arrive_that_was_given_back,
    a_claim_given_back_beside_another_does_not_arrive,
    a_release_beside_its_claim_leaves_no_claim,
    another_fingerprint_never_takes_over,
    a_takeover_replaces_the_former_fingerprint,
    reject_never_takes_over,
    late_holder_completes_if_not_taken_over,
    a_release_frees_the_key_and_the_attempts,
    a_record_expires,
    extend_moves_the_end_of_records_alone,
    claim_expires_ttl_after_last_renewal,
    an_unknown_outcome_never_expires,
    what_was_rejected_once_stays_rejected,
    a_rerun_takes_an_unknown_outcome_over,
    unknown_outcomes_are_counted,
    different_keys_never_meet,
    a_purge_removes_claims_and_records,
    a_resolution_records_what_was_executed,
    a_resolution_frees_what_was_not_executed,
    a_late_holder_does_not_get_a_resolution,
    a_running_claim_is_not_resolved,
    a_resolution_needs_the_token_that_was_looked_at,
    of_many_resolutions_one_wins,
    a_renewal_beside_a_resolution_excludes_it,
    a_resolved_record_expires,
    get_describes_entry,
    a_listing_shows_every_entry_once,
    a_listing_of_claims_shows_no_ended_claim,
    a_listing_of_claims_shows_no_record,
    delete_expired_removes_expired_only,
]);

#[tokio::test]
async fn bounded_stores_keep_room_for_other_owners() {
    let memory = MemoryStore::builder().max_bytes(64 * 1024).build();
    conformance::an_owner_that_uses_up_its_share_stops_no_other(&Arc::new(memory)).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sqlite = SqliteStore::builder(folder.path().join("idempotency.db")).max_bytes(512 * 1024);
    let sqlite = sqlite.open().await.expect("it opens");
    conformance::an_owner_that_uses_up_its_share_stops_no_other(&Arc::new(sqlite)).await;
}

fn memory() -> std::future::Ready<(MemoryStore, ())> {
    std::future::ready((MemoryStore::new(), ()))
}

async fn postgres() -> (PostgresStore, ()) {
    (idempotent_tests::stores::postgres(70).await, ())
}

async fn redis() -> (RedisStore, ()) {
    (RedisStore::connect(&RedisServer::shared().await.url()).await.expect("the store opens"), ())
}

async fn redis_cluster() -> (RedisStore, ()) {
    let store = RedisStore::cluster(RedisCluster::shared().await.urls()).open().await;
    (store.expect("the store opens"), ())
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_keeps_them_under_paused_time() {
    conformance::all(MemoryStore::new()).await;
}
