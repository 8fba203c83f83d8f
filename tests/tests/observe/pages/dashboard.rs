//! The dashboard queries only metrics and labels that exist.

use std::collections::BTreeSet;

use serde_json::Value;

use super::promql::{check, exposition, unknown};
use super::read;

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("the dashboard is JSON");
    assert_eq!(dashboard["schemaVersion"], 39, "the schema of Grafana 10.4 and newer");
    for member in ["title", "uid", "time", "templating"] {
        assert!(!dashboard[member].is_null(), "{member}");
    }
    dashboard["panels"].as_array().expect("there are panels").clone()
}

fn targets(panels: &[Value]) -> Vec<Value> {
    let with_targets = panels.iter().filter(|panel| panel["type"] != "row");
    let targets = with_targets.map(|panel| panel["targets"].as_array().expect("the panel asks for something").clone());
    targets.flatten().collect()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().expect("it is text")
}

/// Replaces variables as Grafana does before Prometheus gets the expression.
fn filled_in(expression: &str) -> String {
    expression.replace("$__rate_interval", "5m").replace("$__range", "6h").replace("$scope", ".*")
}

#[test]
fn no_two_panels_have_one_number_or_lie_on_one_another() {
    let panels = panels();
    let numbers: BTreeSet<_> =
        panels.iter().map(|panel| panel["id"].as_u64().expect("the panel has a number")).collect();
    assert_eq!(numbers.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in &panels {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("it has a place"));
        assert!(x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{cell:?} is taken before {}", panel["title"]);
        }
    }
}

#[tokio::test]
async fn every_panel_asks_prometheus_for_what_the_program_emits() {
    let exposition = exposition().await;
    let (panels, emitted) = (panels(), exposition.labels());
    let targets = targets(&panels);
    assert!(targets.len() > 15);
    let (mut expressions, mut shown) = (Vec::new(), BTreeSet::new());
    for target in &targets {
        let expression = filled_in(text(target, "expr"));
        assert_eq!(unknown(&expression, &emitted), [] as [&str; 0], "{expression}");
        // A label in a legend must still exist after the aggregation.
        let legend = text(target, "legendFormat").split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
        let grouped = expression.split("by (").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        let grouped: BTreeSet<&str> = grouped.split(", ").collect();
        assert!(legend.clone().all(|label| grouped.contains(label)), "{target}");
        let words = expression.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').map(str::to_owned);
        shown.extend(words.filter(|word| word.starts_with("idempotency_")));
        expressions.push(expression);
    }
    let (understood, said) = check(&expressions);
    assert!(understood, "{said}");
    let whole =
        |name: &str| ["_bucket", "_sum", "_count"].iter().fold(name.to_owned(), |name, part| name.replace(part, ""));
    let shown: BTreeSet<String> = shown.iter().map(|name| whole(name)).collect();
    let all: BTreeSet<String> = emitted.keys().map(|name| whole(name)).collect();
    assert_eq!(shown, all, "every metric is shown");
}
