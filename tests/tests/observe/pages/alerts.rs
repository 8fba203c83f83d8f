//! The alerts fire when they must, and link to their sections of the runbook.

use super::promql::{check, exposition, promtool, unknown};
use super::runbook::anchors;
use super::{path, read};

const RUNBOOK: &str = "https://github.com/idempotent-rs/idempotent/blob/main/docs/operations/runbook.md#";

struct Alert {
    name: String,
    expression: String,
    runbook: Vec<String>,
}

/// Reads the parts of the rules that these tests need. Prometheus reads the rest.
fn alerts() -> Vec<Alert> {
    let text = read("alerts.yml");
    let rules = text.split("- alert: ").skip(1).map(|rule| {
        let (name, rule) = rule.split_once('\n').expect("the alert has more lines");
        let expression = rule.split_once("expr: ").expect("it has an expression").1;
        let end = ["\n        for:", "\n        labels:"].iter().filter_map(|next| expression.find(next)).min();
        let expression = expression[..end.expect("labels come next")].trim_start_matches('|').trim().to_owned();
        let runbook = rule.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")).map(str::to_owned);
        Alert { name: name.to_owned(), expression, runbook: runbook.collect() }
    });
    rules.collect()
}

#[test]
fn prometheus_reads_the_rules_and_each_fires_where_it_must() {
    let (understood, said) = promtool(&["check", "rules", path("alerts.yml").to_str().expect("the path is text")]);
    assert!(understood, "{said}");
    let (passed, said) = promtool(&["test", "rules", path("alerts_test.yml").to_str().expect("the path is text")]);
    assert!(passed, "{said}");
    let tests = read("alerts_test.yml");
    for Alert { name, .. } in alerts() {
        let tested = |outcome: &str| tests.contains(&format!("name: {name} {outcome}"));
        assert!(tested("fires") && tested("is silent"), "{name}");
    }
}

#[tokio::test]
async fn every_alert_watches_what_the_program_emits() {
    let exposition = exposition().await;
    let (alerts, emitted) = (alerts(), exposition.labels());
    assert!(alerts.len() > 10);
    for alert in &alerts {
        assert_eq!(unknown(&alert.expression, &emitted), [] as [&str; 0], "{}", alert.name);
    }
    let (understood, said) = check(&alerts.into_iter().map(|alert| alert.expression).collect::<Vec<_>>());
    assert!(understood, "{said}");
}

#[test]
fn every_alert_leads_to_its_own_section() {
    let anchors = anchors(&read("runbook.md"));
    for Alert { name, runbook, .. } in alerts() {
        assert_eq!(runbook, [format!("{RUNBOOK}{}", name.to_lowercase())]);
        assert!(anchors.contains(&name.to_lowercase()), "{name} has no section");
    }
}
