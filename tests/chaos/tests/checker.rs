//! Tests the checker with histories made by hand: it names each broken rule, and accepts what is allowed.

use chaos::checker::{Rule, check};
use chaos::history::{Answer, Execution, Fault, FaultKind, Guarantee, History, Receipt, Request};

const KEY: &str = "k";
const SECOND: u64 = 1_000_000;

fn answer(status: u16, body: String) -> Answer {
    Answer { status, body, is_replay: false }
}

fn done(execution: &str, attempt: u32) -> Answer {
    let receipt = Receipt { execution: execution.to_owned(), attempt, origin: String::new(), padding: String::new() };
    answer(201, serde_json::to_string(&receipt).expect("a receipt serialises"))
}

fn rejected(status: u16, code: &str) -> Answer {
    answer(status, format!("{{\"code\":\"{code}\"}}"))
}

fn told(answer: Answer) -> Request {
    let (key, server, manner, origin) = (KEY.to_owned(), "s0".to_owned(), "Http1".to_owned(), String::new());
    Request { time: (0, SECOND), key, server, manner, origin, answer: Some(answer) }
}

fn execution(id: &str, attempt: u32, begun_at: u64) -> Execution {
    let (id, key, server, ended_at) = (id.to_owned(), KEY.to_owned(), "s0".to_owned(), Some(begun_at + SECOND));
    Execution { id, key, server, attempt, begun_at, ended_at, gave_up: false }
}

/// One execution with its effect, and a client that got its receipt.
fn sound(guarantee: Guarantee) -> History {
    History {
        keys: [(KEY.to_owned(), guarantee)].into(),
        orders: [(KEY.to_owned(), "an order".to_owned())].into(),
        requests: vec![told(done("a", 1))],
        intrusions: Vec::new(),
        executions: vec![execution("a", 1, 0)],
        effects: vec![(KEY.to_owned(), "a".to_owned())],
        faults: Vec::new(),
        finally: [(KEY.to_owned(), done("a", 1))].into(),
    }
}

/// Executed a second time by another process, whose receipt the client got.
fn executed_again(guarantee: Guarantee, attempt: u32) -> History {
    let mut history = sound(guarantee);
    history.executions.push(execution("b", attempt, 4 * SECOND));
    history.effects.push((KEY.to_owned(), "b".to_owned()));
    history.requests = vec![told(done("b", attempt))];
    history.finally = [(KEY.to_owned(), done("b", attempt))].into();
    history
}

fn with_fault(mut history: History, kind: FaultKind, server: Option<&str>, time: (u64, u64)) -> History {
    history.faults.push(Fault { time, server: server.map(str::to_owned), kind });
    history
}

fn broken(history: &History) -> Vec<Rule> {
    check(history).iter().map(|violation| violation.rule).collect()
}

#[test]
fn one_execution_that_is_told_breaks_nothing() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce, Guarantee::ExactlyOnce] {
        assert_eq!(broken(&sound(guarantee)), []);
    }
}

#[test]
fn execution_after_a_death_is_allowed_by_policy() {
    let after_death =
        |guarantee| with_fault(executed_again(guarantee, 2), FaultKind::Died, Some("s0"), (SECOND, SECOND));
    assert_eq!(broken(&after_death(Guarantee::AtLeastOnce)), []);
    assert_eq!(broken(&after_death(Guarantee::AtMostOnce)), [Rule::RanAgain]);
    assert!(broken(&after_death(Guarantee::ExactlyOnce)).contains(&Rule::RanAgain));
}

#[test]
fn an_execution_without_a_reason_is_named() {
    let again = || executed_again(Guarantee::AtLeastOnce, 2);
    assert_eq!(broken(&again()), [Rule::RanAgain]);
    let elsewhere = with_fault(again(), FaultKind::Died, Some("s1"), (SECOND, SECOND));
    assert_eq!(broken(&elsewhere), [Rule::RanAgain], "another process died");
    let afterwards = with_fault(again(), FaultKind::Died, Some("s0"), (5 * SECOND, 5 * SECOND));
    assert_eq!(broken(&afterwards), [Rule::RanAgain], "it died after the second one had begun");
    let for_a_moment = with_fault(again(), FaultKind::StorePaused, None, (SECOND, SECOND + SECOND / 2));
    assert_eq!(broken(&for_a_moment), [Rule::RanAgain], "no lease expires so soon");
    let for_long = with_fault(again(), FaultKind::StorePaused, None, (SECOND, 4 * SECOND));
    assert_eq!(broken(&for_long), []);
}

#[test]
fn two_executions_of_one_attempt_are_named_whatever_happened() {
    let twice = with_fault(executed_again(Guarantee::AtLeastOnce, 1), FaultKind::Died, Some("s0"), (SECOND, SECOND));
    assert!(broken(&twice).contains(&Rule::RanAgain));
}

#[test]
fn an_execution_that_gave_up_frees_the_key() {
    let mut history = executed_again(Guarantee::AtMostOnce, 1);
    history.executions[0].gave_up = true;
    history.effects.remove(0);
    assert_eq!(broken(&history), []);
}

#[test]
fn two_answers_under_one_key_are_named() {
    let again = executed_again(Guarantee::AtLeastOnce, 2);
    let mut history = with_fault(again, FaultKind::Died, Some("s0"), (SECOND, SECOND));
    history.requests.push(told(done("a", 1)));
    assert_eq!(broken(&history), [Rule::TwoAnswers]);
}

#[test]
fn a_success_without_its_effect_is_named() {
    let mut history = sound(Guarantee::ExactlyOnce);
    history.effects.clear();
    assert_eq!(broken(&history), [Rule::ToldWithoutEffect]);
}

/// A history in which the second execution begins while the first one runs.
fn executed_at_once(servers: [&str; 2]) -> History {
    let mut history = executed_again(Guarantee::AtLeastOnce, 2);
    history.executions[0].ended_at = Some(5 * SECOND);
    for (execution, server) in history.executions.iter_mut().zip(servers) {
        server.clone_into(&mut execution.server);
    }
    with_fault(history, FaultKind::StorePaused, None, (0, 4 * SECOND))
}

#[test]
fn executions_at_once_are_excused_in_other_processes_alone() {
    assert_eq!(broken(&executed_at_once(["s0", "s1"])), [], "its lease may have expired");
    assert_eq!(broken(&executed_at_once(["s0", "s0"])), [Rule::RanAtOnce]);
    assert_eq!(broken(&executed_at_once(["s0/r0.0", "s0/r1.0"])), [Rule::RanAtOnce], "runtimes of one process");
}

#[test]
fn the_end_of_a_runtime_excuses_its_own_executions() {
    let end_of = |runtime| {
        let mut history = executed_at_once(["s0/r0.0", "s0/r1.0"]);
        history.executions[0].ended_at = None;
        history.faults.clear();
        broken(&with_fault(history, FaultKind::RuntimeEnded, Some(runtime), (SECOND, SECOND)))
    };
    assert_eq!(end_of("s0/r0.0"), []);
    assert_eq!(end_of("s0/r1.0"), [Rule::RanAgain, Rule::RanAtOnce], "another one ended");
}

#[test]
fn a_record_with_a_short_ttl_is_kept_for_it() {
    let executed_after = |time| {
        let mut history = executed_again(Guarantee::ShortTtl, 1);
        history.executions[1].begun_at = time;
        broken(&history)
    };
    assert_eq!(executed_after(3 * SECOND), [Rule::RanAgain]);
    assert_eq!(executed_after(5 * SECOND), []);
}

#[test]
fn two_effects_of_plain_and_tx_handlers_are_named() {
    let again = || executed_again(Guarantee::Mixed, 1);
    assert_eq!(broken(&again()), [Rule::RanAgain]);
    assert_eq!(broken(&with_fault(again(), FaultKind::Died, Some("s0"), (SECOND, SECOND))), []);
}

#[test]
fn an_effect_of_an_execution_that_failed_is_named() {
    let mut history = sound(Guarantee::ExactlyOnce);
    history.executions[0].gave_up = true;
    assert_eq!(broken(&history), [Rule::EffectStays]);
}

/// A history with another client's request and its answer.
fn intruded(origin: &str, answer: Answer) -> History {
    let mut history = sound(Guarantee::AtLeastOnce);
    history.intrusions.push(Request { origin: origin.to_owned(), ..told(answer) });
    history
}

#[test]
fn a_record_in_the_wrong_hands_is_named() {
    assert_eq!(broken(&intruded("b", done("a", 1))), [Rule::AnothersRecord]);
    assert_eq!(broken(&intruded("/accounts/2", done("a", 1))), [Rule::AnothersRecord]);
    assert_eq!(broken(&intruded("b", rejected(422, "other_credentials"))), []);
    assert_eq!(broken(&intruded("b", rejected(422, "key_reused"))), [Rule::UnknownAnswer], "it would take a new key");
    assert_eq!(broken(&intruded("/accounts/2", rejected(422, "key_reused"))), []);
}

#[test]
fn an_effect_that_no_retry_tells_of_is_named() {
    let mut history = sound(Guarantee::AtLeastOnce);
    history.requests.clear();
    history.finally = [(KEY.to_owned(), answer(402, String::new()))].into();
    assert_eq!(broken(&history), [Rule::UnreportedEffect]);
    let mut unknown = sound(Guarantee::AtMostOnce);
    unknown.requests.clear();
    unknown.finally = [(KEY.to_owned(), rejected(409, "outcome_unknown"))].into();
    assert_eq!(broken(&unknown), [], "an unknown outcome is reported as unknown");
}

#[test]
fn a_key_without_an_answer_is_stuck() {
    let mut history = sound(Guarantee::AtLeastOnce);
    history.finally.clear();
    assert_eq!(broken(&history), [Rule::Stuck]);
}

#[test]
fn an_answer_that_no_document_knows_is_named() {
    for answer in [rejected(422, "key_reused"), answer(502, String::new()), rejected(409, "outcome_unknown")] {
        let mut history = sound(Guarantee::AtLeastOnce);
        history.requests.push(told(answer));
        assert_eq!(broken(&history), [Rule::UnknownAnswer]);
    }
}

#[test]
fn the_history_of_a_key_can_be_followed() {
    let again = executed_again(Guarantee::AtLeastOnce, 2);
    let told = with_fault(again, FaultKind::Died, Some("s0"), (SECOND, SECOND)).of_key(KEY);
    let lines: Vec<&str> = told.lines().map(str::trim_start).collect();
    let place = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("{told}"));
    assert_eq!(lines[0], "AtLeastOnce, an order");
    assert!(place("execution a begins") < place("fault: Died s0"));
    assert!(place("fault: Died s0") < place("execution b begins on s0, attempt 2"));
    assert!(place("finally: 201 for b, attempt 2") == lines.len() - 1);
}
