//! Kills a process at each named step, for each store and guarantee. After a restart, no manual repair is needed.

use std::time::Duration;

use chaos::history::{Answer, Guarantee, History};
use chaos::run::{Plan, Stage, StoreKind};
use chaos::server::{DIE_AT, Order, Step};
use futures_util::future::join_all;
use idempotent_tests::eventually;

const ORDER: Order = Order::taking(20);

async fn post(stage: &Stage, guarantee: Guarantee, key: &str, die_at: Option<Step>) -> Option<Answer> {
    let client = reqwest::Client::builder().retry(reqwest::retry::never()).build().expect("a client");
    let url = format!("http://{}{}", stage.fleet.server(0).address, guarantee.path());
    let mut request = client.post(url).header("idempotency-key", key).json(&ORDER);
    if let Some(step) = die_at {
        request = request.header(DIE_AT, step.name());
    }
    let response = request.send().await.ok()?;
    let (status, is_replay) = (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"));
    Some(Answer { status, body: response.text().await.ok()?, is_replay })
}

fn key(guarantee: Guarantee, step: Step) -> String {
    format!("{guarantee:?}-{}", step.name())
}

/// What a retry gets after a death at this step: the status or code, whether it is a replay, and the attempt number;
/// and how many executions and effects there are then.
fn expected(guarantee: Guarantee, step: Step) -> (&'static str, bool, u32, usize, usize) {
    use Guarantee::{AtLeastOnce, AtMostOnce, ExactlyOnce};
    match (step, guarantee) {
        (Step::BeforeClaim, _) | (Step::Claimed, ExactlyOnce) => ("201", false, 1, 1, 1),
        (Step::Claimed, AtLeastOnce) => ("201", false, 2, 1, 1),
        (Step::InHandler, AtLeastOnce) => ("201", false, 2, 2, 1),
        (Step::EffectDone | Step::BeforeRecord, AtLeastOnce) => ("201", false, 2, 2, 2),
        (Step::Claimed, AtMostOnce) => ("outcome_unknown", false, 0, 0, 0),
        (Step::InHandler, AtMostOnce) => ("outcome_unknown", false, 0, 1, 0),
        (Step::EffectDone | Step::BeforeRecord, AtMostOnce) => ("outcome_unknown", false, 0, 1, 1),
        (Step::InHandler | Step::EffectDone | Step::BeforeRecord, ExactlyOnce) => ("201", false, 1, 2, 1),
        (Step::Recorded | Step::BeforeSend, _) => ("201", true, 1, 1, 1),
        (_, Guarantee::ShortTtl | Guarantee::Mixed) => unreachable!("no case here asks for {guarantee:?}"),
    }
}

async fn every_death_keeps_the_guarantee(store: StoreKind, guarantees: &[Guarantee]) {
    let plan = Plan::calm(0, Duration::ZERO, store, 1);
    let stage = Stage::set(&plan, env!("CARGO_BIN_EXE_chaos").into()).await.expect("the servers start");
    for &guarantee in guarantees {
        for step in Step::ALL {
            // A commit and its record happen at one step.
            let die_at =
                if (step, guarantee) == (Step::Recorded, Guarantee::ExactlyOnce) { Step::BeforeSend } else { step };
            let before = stage.fleet.server(0).name;
            let answer = post(&stage, guarantee, &key(guarantee, step), Some(die_at)).await;
            assert_eq!(answer, None, "{guarantee:?}: the server dies at {}", step.name());
            eventually(async || stage.fleet.server(0).name, |name| *name != before).await;
        }
    }
    let retries = guarantees.iter().flat_map(|&guarantee| Step::ALL.map(|step| (guarantee, step)));
    let stage = &stage;
    let answers = join_all(retries.map(|(guarantee, step)| async move {
        let retry = async || post(stage, guarantee, &key(guarantee, step), None).await.expect("the server answers");
        let answer = eventually(retry, |answer| answer.code().as_deref() != Some("in_flight")).await;
        (guarantee, step, answer)
    }));
    let answers = answers.await;
    let history = stage.history().await.expect("the ledger is read");
    for (guarantee, step, answer) in answers {
        assert_eq!(found(&history, guarantee, step, &answer), expected(guarantee, step), "{guarantee:?} at {step:?}");
    }
}

fn found(
    history: &History,
    guarantee: Guarantee,
    step: Step,
    answer: &Answer,
) -> (&'static str, bool, u32, usize, usize) {
    let key = key(guarantee, step);
    let told = match (answer.status, answer.code().as_deref()) {
        (201, _) => "201",
        (409, Some("outcome_unknown")) => "outcome_unknown",
        _ => panic!("{guarantee:?} at {step:?}: {answer}"),
    };
    let attempt = answer.receipt().map_or(0, |receipt| receipt.attempt);
    let executions = history.executions.iter().filter(|execution| execution.key == key).count();
    (told, answer.is_replay, attempt, executions, history.effects_of(&key).len())
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_at_each_step_over_sqlite_keeps_every_guarantee() {
    let all = [Guarantee::AtLeastOnce, Guarantee::AtMostOnce, Guarantee::ExactlyOnce];
    every_death_keeps_the_guarantee(StoreKind::Sqlite, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_at_each_step_over_redis_keeps_every_guarantee() {
    every_death_keeps_the_guarantee(StoreKind::Redis, &[Guarantee::AtLeastOnce, Guarantee::AtMostOnce]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_at_each_step_over_postgres_keeps_every_guarantee() {
    let all = [Guarantee::AtLeastOnce, Guarantee::AtMostOnce, Guarantee::ExactlyOnce];
    every_death_keeps_the_guarantee(StoreKind::Postgres, &all).await;
}
