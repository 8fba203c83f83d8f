//! Checks for each key whether the handlers kept their guarantees.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::time::Duration;

use crate::LEASE;
use crate::history::{Answer, Execution, Fault, FaultKind, Guarantee, History, Request};

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// The handler ran again without a reason that its policy allows.
    RanAgain,
    /// The handler ran twice at the same time, although nothing had taken the claim of the first execution.
    RanAtOnce,
    /// Two clients got different answers under one key.
    TwoAnswers,
    /// A client was told that its request was executed, but its effect is missing.
    ToldWithoutEffect,
    /// A client was told that its request failed, but its effect remains.
    EffectStays,
    /// The request had an effect, and no retry will ever report it.
    UnreportedEffect,
    /// The key no longer gets an answer.
    Stuck,
    /// A record was sent for other credentials or another target than those that it was made for.
    AnothersRecord,
    /// An answer that is not documented.
    UnknownAnswer,
}

/// One broken rule.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The broken rule.
    pub rule: Rule,
    /// The key.
    pub key: String,
    /// A description.
    pub what: String,
}

/// All violations of a history.
pub fn check(history: &History) -> Vec<Violation> {
    let mut executions = BTreeMap::<&str, Vec<&Execution>>::new();
    for execution in &history.executions {
        executions.entry(&execution.key).or_default().push(execution);
    }
    let mut answers = BTreeMap::<&str, Vec<&Answer>>::new();
    for request in &history.requests {
        answers.entry(&request.key).or_default().extend(&request.answer);
    }
    let mut intrusions = BTreeMap::<&str, Vec<&Request>>::new();
    for request in &history.intrusions {
        intrusions.entry(&request.key).or_default().push(request);
    }
    let mut violations = Vec::new();
    for (key, &guarantee) in &history.keys {
        let mut executions = executions.remove(key.as_str()).unwrap_or_default();
        executions.sort_by_key(|execution| execution.begun_at);
        let mut answers = answers.remove(key.as_str()).unwrap_or_default();
        answers.extend(history.finally.get(key));
        let intrusions = intrusions.remove(key.as_str()).unwrap_or_default();
        let life = Life { history, key, guarantee, executions, answers, intrusions, effects: history.effects_of(key) };
        let mut broken = |rule, what: Option<String>| {
            violations.extend(what.map(|what| Violation { rule, key: key.clone(), what }));
        };
        broken(Rule::RanAgain, life.ran_again());
        broken(Rule::RanAtOnce, life.ran_at_once());
        broken(Rule::TwoAnswers, life.two_answers());
        broken(Rule::ToldWithoutEffect, life.told_without_effect());
        broken(Rule::EffectStays, life.effect_stays());
        broken(Rule::UnreportedEffect, life.unreported_effect());
        broken(Rule::Stuck, (!history.finally.contains_key(key)).then(|| "its last retries got no answer".to_owned()));
        broken(Rule::UnknownAnswer, life.unknown_answer());
        broken(Rule::UnknownAnswer, life.unknown_answer_to_another_client());
    }
    for request in history.requests.iter().chain(&history.intrusions) {
        let what = anothers_record(request);
        violations.extend(what.map(|what| Violation { rule: Rule::AnothersRecord, key: request.key.clone(), what }));
    }
    violations
}

fn anothers_record(request: &Request) -> Option<String> {
    let receipt = request.answer.as_ref()?.receipt()?;
    (receipt.origin != request.origin)
        .then(|| format!("a request as {} got {}, which ran as {}", request.origin, receipt.execution, receipt.origin))
}

/// Everything that is known of one key.
struct Life<'a> {
    history: &'a History,
    key: &'a str,
    guarantee: Guarantee,
    executions: Vec<&'a Execution>,
    answers: Vec<&'a Answer>,
    intrusions: Vec<&'a Request>,
    effects: Vec<&'a str>,
}

impl Life<'_> {
    fn ran_again(&self) -> Option<String> {
        match self.guarantee {
            Guarantee::ExactlyOnce => {
                (self.effects.len() > 1).then(|| format!("{} effects: {:?}", self.effects.len(), self.effects))
            }
            Guarantee::AtMostOnce => {
                let ran = self.executions.iter().filter(|execution| !execution.gave_up).count();
                (ran > 1).then(|| format!("{ran} executions"))
            }
            Guarantee::AtLeastOnce => self.executions.windows(2).find_map(|pair| {
                let [first, second] = pair else { return None };
                if first.gave_up {
                    return None;
                }
                if second.attempt <= first.attempt {
                    return Some(format!(
                        "{} and {} are told attempts {} and {}",
                        first.id, second.id, first.attempt, second.attempt
                    ));
                }
                (!self.lost_its_lease(first, second))
                    .then(|| format!("{} follows {}, whose process was alive all the time", second.id, first.id))
            }),
            Guarantee::ShortTtl => self.pairs().find_map(|(first, second)| {
                let kept_until = first.ended_at?.saturating_add(micros(LEASE)).saturating_sub(CLOCKS_DIFFER);
                let is_too_early = second.begun_at < kept_until && !first.gave_up;
                (is_too_early && !self.lost_its_lease(first, second))
                    .then(|| format!("{} follows {} before its record expires", second.id, first.id))
            }),
            Guarantee::Mixed => self.pairs().find_map(|(first, second)| {
                let have_effects = [first, second].iter().all(|one| self.effects.contains(&one.id.as_str()));
                (have_effects && !self.lost_its_lease(first, second))
                    .then(|| format!("{} and {} both have effects", first.id, second.id))
            }),
        }
    }

    /// A key is taken as long as its handler runs, in the process that runs the handler, whatever the store has
    /// forgotten. In other processes, it is taken as long as the lease was renewed.
    fn ran_at_once(&self) -> Option<String> {
        self.pairs().find_map(|(first, second)| {
            if second.begun_at >= self.end_of(first) || self.lost_its_transaction(first, second) {
                return None;
            }
            let is_one_process = process(&first.server) == process(&second.server);
            (is_one_process || !self.lost_its_lease(first, second)).then(|| {
                let place = if is_one_process { "in the same process" } else { "whose lease was renewed" };
                format!("{} began while {} ran, {place}", second.id, first.id)
            })
        })
    }

    /// Each execution paired with each later one.
    fn pairs(&self) -> impl Iterator<Item = (&'_ Execution, &'_ Execution)> {
        let later = |number| self.executions.iter().skip(number + 1);
        self.executions
            .iter()
            .enumerate()
            .flat_map(move |(number, first)| later(number).map(|second| (*first, *second)))
    }

    /// The time after which nothing of the execution ran any more.
    fn end_of(&self, execution: &Execution) -> u64 {
        let mut ends = self.history.faults.iter().filter(|fault| {
            let is_end = matches!(fault.kind, FaultKind::Died | FaultKind::RuntimeEnded);
            is_end && concerns(fault, execution) && fault.time.1 >= execution.begun_at
        });
        execution.ended_at.or_else(|| ends.next().map(|fault| fault.time.1)).unwrap_or(u64::MAX)
    }

    /// A transaction has no lease: its key is free as soon as its connection or process is gone, or the database has
    /// ended it.
    fn lost_its_transaction(&self, first: &Execution, second: &Execution) -> bool {
        /// The death of a process is recorded a moment after it.
        const NOTED: u64 = 1_000_000;
        matches!(self.guarantee, Guarantee::ExactlyOnce | Guarantee::Mixed)
            && self.history.faults.iter().any(|fault| {
                concerns(fault, first) && fault.time.1 >= first.begun_at && fault.time.0 <= second.begun_at + NOTED
            })
    }

    /// Whether something that takes a claim from its holder happened between the two executions.
    fn lost_its_lease(&self, first: &Execution, second: &Execution) -> bool {
        // A lease is renewed after each third of its length, so a pause of two thirds may be too long.
        let too_long = micros(LEASE) * 2 / 3;
        self.history.faults.iter().any(|fault| {
            let (from, to) = fault.time;
            let while_it_ran = to >= first.begun_at && from <= second.begun_at;
            let is_end = matches!(fault.kind, FaultKind::Died | FaultKind::RuntimeEnded);
            let is_long = is_end || to - from >= too_long;
            concerns(fault, first) && while_it_ran && is_long
        })
    }

    /// Whether a response may have been sent without its record. This happens if the store is away for longer than a
    /// request waits for it. The response is then lost if the process dies before it could be recorded later.
    fn went_out_unrecorded(&self) -> bool {
        const WAITED_FOR: u64 = 1_500_000;
        let (Some(first), Some(last)) = (self.executions.first(), self.executions.last()) else { return false };
        self.history.faults.iter().any(|fault| {
            let (from, to) = fault.time;
            fault.server.is_none() && to - from >= WAITED_FOR && to >= first.begun_at && from <= last.begun_at
        })
    }

    fn two_answers(&self) -> Option<String> {
        match self.guarantee {
            Guarantee::AtLeastOnce | Guarantee::Mixed if self.went_out_unrecorded() => return None,
            // The record expires soon, so a later request is executed and gets another answer.
            Guarantee::ShortTtl => return None,
            _ => {}
        }
        let told: BTreeSet<(u16, &str)> = self
            .answers
            .iter()
            .filter(|answer| answer.is_final())
            .map(|answer| (answer.status, answer.body.as_str()))
            .collect();
        let shown: Vec<String> =
            self.answers.iter().filter(|answer| answer.is_final()).map(ToString::to_string).collect();
        (told.len() > 1).then(|| format!("{} different ones: {shown:?}", told.len()))
    }

    fn told_without_effect(&self) -> Option<String> {
        let receipts = self.answers.iter().filter_map(|answer| answer.receipt());
        let mut missing = receipts.filter(|receipt| !self.effects.contains(&receipt.execution.as_str()));
        missing.next().map(|receipt| format!("{} has no effect", receipt.execution))
    }

    fn effect_stays(&self) -> Option<String> {
        let gave_up = self.executions.iter().filter(|execution| execution.gave_up);
        let mut staying = gave_up.filter(|execution| self.effects.contains(&execution.id.as_str()));
        staying.next().map(|execution| format!("{} answered that it failed, and has an effect", execution.id))
    }

    fn unreported_effect(&self) -> Option<String> {
        let finally = self.history.finally.get(self.key)?;
        let last = self.effects.last()?;
        let Some(receipt) = finally.receipt() else {
            let is_told_unknown = finally.code().as_deref() == Some("outcome_unknown");
            return (!is_told_unknown).then(|| format!("{last} is done, and its retry gets {finally}"));
        };
        if matches!(self.guarantee, Guarantee::ShortTtl | Guarantee::Mixed) {
            // Executions whose record has expired are not counted, and a transaction counts no attempts.
            return None;
        }
        // Each attempt has at most one effect, so the attempt number tells a client how many effects there may be.
        let distinct: HashSet<&str> = self.effects.iter().copied().collect();
        (distinct.len() > receipt.attempt as usize)
            .then(|| format!("{} effects, and attempt {} is told", distinct.len(), receipt.attempt))
    }

    fn unknown_answer(&self) -> Option<String> {
        let is_known = |answer: &Answer| match (answer.status, answer.code().as_deref()) {
            (201, _) => answer.receipt().is_some(),
            (402 | 500, None)
            | (409, Some("in_flight" | "not_recorded" | "claim_lost"))
            | (503, Some("store_unavailable")) => true,
            (409, Some("outcome_unknown")) => self.guarantee == Guarantee::AtMostOnce,
            (502, None) => self.guarantee == Guarantee::ExactlyOnce,
            (500, Some("transaction_failed")) | (503, Some("transaction_conflict")) => {
                matches!(self.guarantee, Guarantee::ExactlyOnce | Guarantee::Mixed)
            }
            _ => false,
        };
        self.answers.iter().find(|answer| !is_known(answer)).map(|answer| format!("{answer}: {}", answer.body))
    }

    /// A client with other credentials must not be told that the key is used up: it would send the request again with a
    /// new key.
    fn unknown_answer_to_another_client(&self) -> Option<String> {
        self.intrusions.iter().find_map(|request| {
            let answer = request.answer.as_ref()?;
            let rejected = if request.origin.starts_with('/') { "key_reused" } else { "other_credentials" };
            let is_known = match (answer.status, answer.code().as_deref()) {
                (201, _) => answer.receipt().is_some(),
                (422, code) => code == Some(rejected),
                (409, Some("in_flight" | "claim_lost")) | (503, Some("store_unavailable")) => true,
                _ => false,
            };
            (!is_known).then(|| format!("another client got {answer}: {}", answer.body))
        })
    }
}

/// An entry may expire this much too early by the driver's clock.
const CLOCKS_DIFFER: u64 = 100_000;

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the fault affected the place where the execution ran: a runtime, its process, or all processes.
fn concerns(fault: &Fault, execution: &Execution) -> bool {
    fault.server.as_ref().is_none_or(|server| *server == execution.server || *server == process(&execution.server))
}

/// The process of a runtime: `s0.1` for `s0.1/r2.0`.
fn process(server: &str) -> &str {
    server.split_once('/').map_or(server, |(process, _)| process)
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: key {}: {}", self.rule, self.key, self.what)
    }
}
