//! Sets the clock of the servers' machine forward or back by an hour while a handler runs. This must have no effect.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chaos::history::{Answer, Guarantee};
use chaos::run::{Plan, Stage, StoreKind};
use chaos::server::Order;
use idempotent_tests::eventually;
use tempfile::TempDir;

/// Long enough to set a clock meanwhile, and shorter than a lease.
const ORDER: Order = Order::taking(1_500);
const KEY: &str = "clock";

const JUMPS: [&str; 2] = ["+3600", "-3600"];

fn client() -> reqwest::Client {
    reqwest::Client::builder().retry(reqwest::retry::never()).build().expect("a client")
}

async fn post(stage: &Stage, server: usize) -> Option<Answer> {
    let url = format!("http://{}{}", stage.fleet.server(server).address, Guarantee::AtLeastOnce.path());
    let response = client().post(url).header("idempotency-key", KEY).json(&ORDER).send().await.ok()?;
    let (status, is_replay) = (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"));
    Some(Answer { status, body: response.text().await.ok()?, is_replay })
}

/// By how many seconds the server's clock is off.
async fn clock_offset(stage: &Stage, server: usize) -> i64 {
    let url = format!("http://{}/clock", stage.fleet.server(server).address);
    let said = client().get(url).send().await.expect("it answers").text().await.expect("it says a number");
    let said: u64 = said.parse().expect("microseconds");
    (said.cast_signed() - chaos::now().cast_signed()) / 1_000_000
}

/// Starts servers whose clock offset is in a file, and a handler on the first of them.
async fn run_a_handler(
    store: StoreKind,
    servers: usize,
    folder: &Path,
) -> (Arc<Stage>, tokio::task::JoinHandle<Option<Answer>>) {
    let offset = folder.join("offset");
    fs::write(&offset, "+0").expect("the file is written");
    let plan = Plan { clock_offset: Some(offset), ..Plan::calm(0, Duration::ZERO, store, servers) };
    let stage = Arc::new(Stage::set(&plan, env!("CARGO_BIN_EXE_chaos").into()).await.expect("the servers start"));
    let first = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { post(&stage, 0).await }
    });
    eventually(async || stage.history().await.expect("the ledger").executions.len(), |&count| count == 1).await;
    (stage, first)
}

fn set_clock(folder: &Path, jump: &str) {
    // Replaces the file in one step: otherwise a server could read an empty file.
    fs::write(folder.join("new"), jump).expect("the file is written");
    fs::rename(folder.join("new"), folder.join("offset")).expect("it takes the other's place");
}

async fn a_jump_has_no_effect(store: StoreKind, servers: usize) {
    for jump in JUMPS {
        let folder = TempDir::with_prefix("clock").expect("a folder");
        let (stage, first) = run_a_handler(store, servers, folder.path()).await;
        set_clock(folder.path(), jump);
        let last = servers - 1;
        let offset = clock_offset(&stage, last).await;
        assert!((3_590..3_610).contains(&offset.abs()), "{jump}: the server's clock is off by {offset} s");
        let duplicate = post(&stage, last).await.expect("it is answered");
        assert_eq!(duplicate.code().as_deref(), Some("in_flight"), "{jump}: {duplicate}");
        let first = first.await.expect("the task ends").expect("it is answered");
        assert_eq!(first.receipt().expect("it is done").attempt, 1);
        let retry = post(&stage, last).await.expect("it is answered");
        assert!(retry.is_replay, "{jump}: {retry}");
        assert_eq!(retry.body, first.body);
        assert_eq!(stage.history().await.expect("the ledger").executions.len(), 1);
    }
}

async fn a_dead_process_is_followed_all_the_same(store: StoreKind) {
    for jump in JUMPS {
        let folder = TempDir::with_prefix("clock").expect("a folder");
        let (stage, first) = run_a_handler(store, 2, folder.path()).await;
        set_clock(folder.path(), jump);
        stage.fleet.kill_server(0);
        assert!(first.await.expect("the task ends").is_none(), "its server is dead");
        let rejected = post(&stage, 1).await.expect("it is answered");
        assert_eq!(rejected.code().as_deref(), Some("in_flight"), "{jump}: the lease lasts as long as it would have");
        let retry = async || post(&stage, 1).await.expect("it is answered");
        let retry = eventually(retry, |answer| answer.code().is_none()).await;
        assert_eq!(retry.receipt().expect("it is done").attempt, 2, "{jump}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_has_no_effect_over_memory() {
    a_jump_has_no_effect(StoreKind::Memory, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_has_no_effect_over_sqlite() {
    a_jump_has_no_effect(StoreKind::Sqlite, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_has_no_effect_over_redis() {
    a_jump_has_no_effect(StoreKind::Redis, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_has_no_effect_over_postgres() {
    a_jump_has_no_effect(StoreKind::Postgres, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_process_is_followed_whatever_its_clock_over_sqlite() {
    a_dead_process_is_followed_all_the_same(StoreKind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_process_is_followed_whatever_its_clock_over_redis() {
    a_dead_process_is_followed_all_the_same(StoreKind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_process_is_followed_whatever_its_clock_over_postgres() {
    a_dead_process_is_followed_all_the_same(StoreKind::Postgres).await;
}
