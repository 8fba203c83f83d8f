//! Whether the handlers kept their word, key by key.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use crate::LEASE;
use crate::history::{Answer, Execution, FaultKind, Guarantee, History};

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// The handler ran again without a reason that its policy names.
    RanAgain,
    /// Two clients were told different things under one key.
    TwoAnswers,
    /// A client was told that something is done, and it is not.
    ToldWithoutEffect,
    /// Something was done, and no retry will ever tell.
    EffectNobodyLearnsOf,
    /// A key that answers nobody any more.
    Stuck,
    /// An answer that no document knows.
    UnknownAnswer,
}

/// One broken rule.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// Of which key.
    pub key: String,
    /// In words.
    pub what: String,
}

/// All violations of a history.
pub fn judge(history: &History) -> Vec<Violation> {
    let mut executions = BTreeMap::<&str, Vec<&Execution>>::new();
    for execution in &history.executions {
        executions.entry(&execution.key).or_default().push(execution);
    }
    let mut answers = BTreeMap::<&str, Vec<&Answer>>::new();
    for request in &history.requests {
        answers.entry(&request.key).or_default().extend(&request.answer);
    }
    let mut violations = Vec::new();
    for (key, &guarantee) in &history.keys {
        let mut executions = executions.remove(key.as_str()).unwrap_or_default();
        executions.sort_by_key(|execution| execution.begun_at);
        let mut answers = answers.remove(key.as_str()).unwrap_or_default();
        answers.extend(history.finally.get(key));
        let life = Life { history, key, guarantee, executions, answers, effects: history.effects_of(key) };
        let mut broken = |rule, what: Option<String>| {
            violations.extend(what.map(|what| Violation { rule, key: key.clone(), what }));
        };
        broken(Rule::RanAgain, life.ran_again());
        broken(Rule::TwoAnswers, life.two_answers());
        broken(Rule::ToldWithoutEffect, life.told_without_effect());
        broken(Rule::EffectNobodyLearnsOf, life.effect_nobody_learns_of());
        broken(Rule::Stuck, (!history.finally.contains_key(key)).then(|| "its last retries got no answer".to_owned()));
        broken(Rule::UnknownAnswer, life.unknown_answer());
    }
    violations
}

/// All that is known of one key.
struct Life<'a> {
    history: &'a History,
    key: &'a str,
    guarantee: Guarantee,
    executions: Vec<&'a Execution>,
    answers: Vec<&'a Answer>,
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
        }
    }

    /// Whether something happened between the two that takes a claim from its holder.
    fn lost_its_lease(&self, first: &Execution, second: &Execution) -> bool {
        // A lease is renewed at each third of its length, so that a pause of two thirds may be too long for it.
        let too_long = u64::try_from(LEASE.as_micros()).unwrap_or(u64::MAX) * 2 / 3;
        self.history.faults.iter().any(|fault| {
            let (from, to) = fault.time;
            let concerns_it = fault.server.as_ref().is_none_or(|server| *server == first.server);
            let while_it_ran = to >= first.begun_at && from <= second.begun_at;
            let is_long = fault.kind == FaultKind::Died || to - from >= too_long;
            concerns_it && while_it_ran && is_long
        })
    }

    /// A response goes out without its record when the store is away for longer than it is waited for; and is forgotten if
    /// the process dies before it could be recorded after all.
    fn went_out_unrecorded(&self) -> bool {
        const WAITED_FOR: u64 = 1_500_000;
        let (Some(first), Some(last)) = (self.executions.first(), self.executions.last()) else { return false };
        self.history.faults.iter().any(|fault| {
            let (from, to) = fault.time;
            fault.server.is_none() && to - from >= WAITED_FOR && to >= first.begun_at && from <= last.begun_at
        })
    }

    fn two_answers(&self) -> Option<String> {
        if self.guarantee == Guarantee::AtLeastOnce && self.went_out_unrecorded() {
            return None;
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

    fn effect_nobody_learns_of(&self) -> Option<String> {
        let finally = self.history.finally.get(self.key)?;
        let last = self.effects.last()?;
        let Some(receipt) = finally.receipt() else {
            let is_told_unknown = finally.code().as_deref() == Some("outcome_unknown");
            return (!is_told_unknown).then(|| format!("{last} is done, and its retry gets {finally}"));
        };
        // Each attempt has at most one effect: the number tells a client how many there may be.
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
            _ => false,
        };
        self.answers.iter().find(|answer| !is_known(answer)).map(|answer| format!("{answer}: {}", answer.body))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: key {}: {}", self.rule, self.key, self.what)
    }
}
