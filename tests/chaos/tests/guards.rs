//! Short runs: with every guard, no rule is broken; without one of them, the checker reports it.

use std::time::Duration;

use chaos::checker::Rule;
use chaos::run::{Outcome, Plan, StoreKind, play};
use chaos::server::Guard;

/// More parallel runs would only slow each other down.
static TURNS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(3);

async fn play_alone(plan: &Plan) -> Outcome {
    let _turn = TURNS.acquire().await;
    let outcome = play(plan, env!("CARGO_BIN_EXE_chaos").into()).await.expect("the run is played");
    println!("seed {}, {:?}: {}", plan.seed, plan.store, outcome.summary());
    outcome
}

/// The seed in the environment, or else a new one in every run.
fn seed() -> u64 {
    match std::env::var("CHAOS_SEED") {
        Ok(seed) => seed.parse().expect("CHAOS_SEED is a number"),
        Err(_) => chaos::now() % 1_000_000,
    }
}

async fn nothing_is_wrong_over(store: StoreKind) {
    let outcome = play_alone(&Plan::everything(seed(), Duration::from_secs(10), store)).await;
    assert!(outcome.violations.is_empty(), "{}", outcome.report());
    assert!(outcome.history.effects.len() > 50, "the servers were at work");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_all_faults_nothing_is_wrong_over_sqlite() {
    nothing_is_wrong_over(StoreKind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_all_faults_nothing_is_wrong_over_redis() {
    nothing_is_wrong_over(StoreKind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_all_faults_nothing_is_wrong_over_postgres() {
    nothing_is_wrong_over(StoreKind::Postgres).await;
}

/// Plays several runs, because some faults must come at the right moment.
async fn the_want_is_noticed(guard: Guard, store: StoreKind, rule: Rule) {
    let seed = seed();
    for round in 0..10 {
        let outcome = play_alone(&Plan::against(guard, seed + round, Duration::from_secs(5), store)).await;
        if let Some(violation) = outcome.violations.iter().find(|violation| violation.rule == rule) {
            println!("{violation}\n{}", outcome.history.of_key(&violation.key));
            return;
        }
    }
    panic!("without the guard {guard:?} the rule {rule:?} was never broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_without_the_token_is_noticed() {
    the_want_is_noticed(Guard::Token, StoreKind::Redis, Rule::TwoAnswers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_after_sending_is_noticed() {
    the_want_is_noticed(Guard::RecordFirst, StoreKind::Redis, Rule::TwoAnswers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn releasing_on_disconnect_is_noticed() {
    the_want_is_noticed(Guard::Disconnect, StoreKind::Sqlite, Rule::RanAgain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_are_not_renewed_are_noticed() {
    the_want_is_noticed(Guard::Renewal, StoreKind::Redis, Rule::RanAgain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_again_after_a_rejected_crash_is_noticed() {
    the_want_is_noticed(Guard::RejectionAfterCrash, StoreKind::Redis, Rule::RanAgain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_outside_of_the_transaction_is_noticed() {
    the_want_is_noticed(Guard::Transaction, StoreKind::Sqlite, Rule::RanAgain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_not_renewed_while_a_thread_blocks_are_noticed() {
    the_want_is_noticed(Guard::BlockedRenewal, StoreKind::Redis, Rule::RanAgain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_renewed_by_one_of_several_runtimes_are_noticed() {
    the_want_is_noticed(Guard::RuntimeRenewal, StoreKind::Sqlite, Rule::RanAtOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_claim_forgotten_after_its_ttl_is_noticed() {
    the_want_is_noticed(Guard::ClaimOutlivesTtl, StoreKind::Redis, Rule::RanAtOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_of_an_ended_transaction_that_stay_are_noticed() {
    the_want_is_noticed(Guard::TransactionCheck, StoreKind::Sqlite, Rule::EffectStays).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_plain_and_tx_handlers_hide_are_noticed() {
    the_want_is_noticed(Guard::SharedClaims, StoreKind::Postgres, Rule::RanAtOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_served_to_other_credentials_is_noticed() {
    the_want_is_noticed(Guard::Credentials, StoreKind::Redis, Rule::AnothersRecord).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_served_for_another_target_is_noticed() {
    the_want_is_noticed(Guard::Target, StoreKind::Redis, Rule::AnothersRecord).await;
}
