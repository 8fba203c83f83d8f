//! Stores that fail, and the servers, connections and disks below them that stop, break or are full.

mod damaged_entries;
mod exhausted_pools;
mod full_disks;
mod full_stores;
mod late_claims;
mod lines_that_break;
mod lost_statements;
mod postgres_connections;
mod postgres_failover;
mod postgres_faults;
mod records_too_large;
mod redis_cluster;
mod redis_connections;
mod redis_failover;
mod redis_faults;
mod redis_sentinels;
mod servers_that_pause;
mod shortages;
mod silent_stores;
mod store_errors;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
