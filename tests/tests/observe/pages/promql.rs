//! The names in a PromQL expression, and the names that the program emits.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use axum::Router;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent, metrics};
use idempotent_tests::{Server, eventually};
use tempfile::TempDir;

use crate::exposition::Exposition;

/// Labels that Prometheus itself adds to each sample.
const OF_THE_SCRAPE: [&str; 2] = ["instance", "job"];

#[idempotent(scope = "operations")]
async fn create_charge() {}

/// The metrics of a process that has run and replayed a request.
pub(crate) async fn exposition() -> Exposition {
    Exposition::begin();
    let registry = Registry::new(MemoryStore::new());
    let server = Server::start(Router::new().route("/", post(create_charge)).layer(registry.layer())).await;
    server.post_with_key("/", "k").await;
    assert!(server.post_with_key("/", "k").await.is_replay());
    // The stores are queried in the background, and not by the requests.
    let counted = async || {
        metrics::refresh();
        Exposition::scrape().value(metrics::UNKNOWN_OUTCOMES, &[])
    };
    eventually(counted, Option::is_some).await;
    Exposition::scrape()
}

/// The names and labels of an expression that the program does not emit.
pub(crate) fn unknown(expression: &str, emitted: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<String> {
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let names: Vec<String> = words(expression).into_iter().filter(|word| word.starts_with("idempotency_")).collect();
    assert!(!names.is_empty(), "no metric in {expression}");
    let labels: BTreeSet<&str> =
        names.iter().filter_map(|name| emitted.get(name.as_str())).flatten().copied().collect();
    let is_label = |label: &String| labels.contains(label.as_str()) || OF_THE_SCRAPE.contains(&label.as_str());
    let named_in = |opening: &str, closing: char| -> Vec<String> {
        let parts = expression.split(opening).skip(1).filter_map(|rest| rest.split(closing).next());
        parts.map(str::to_owned).collect()
    };
    let matched = named_in("{", '}').into_iter().flat_map(|matchers| {
        matchers.split("\",").filter_map(|matcher| words(matcher).into_iter().next()).collect::<Vec<_>>()
    });
    let grouped = ["by (", "on ("].into_iter().flat_map(|opening| named_in(opening, ')')).flat_map(|list| words(&list));
    let unknown_labels: Vec<String> = matched.chain(grouped).filter(|label| !is_label(label)).collect();
    names.into_iter().filter(|name| !emitted.contains_key(name.as_str())).chain(unknown_labels).collect()
}

/// Runs Prometheus' own `promtool`. Returns whether it succeeded, and what it printed.
///
/// # Panics
///
/// When `promtool` is not installed.
pub(crate) fn promtool(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("promtool").args(arguments).output();
    let output = output.expect("no `promtool` here: install it with `apt-get install prometheus`");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Whether Prometheus can parse these expressions.
pub(crate) fn check(expressions: &[String]) -> (bool, String) {
    let rules: Vec<_> =
        expressions.iter().map(|expr| serde_json::json!({ "record": "checked:expression", "expr": expr })).collect();
    let file = serde_json::json!({ "groups": [{ "name": "checked", "rules": rules }] });
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("rules.yml");
    // The file may be JSON, because JSON is YAML.
    std::fs::write(&path, file.to_string()).expect("the file is written");
    promtool(&["check", "rules", "--lint=none", path.to_str().expect("the path is text")])
}

#[tokio::test]
async fn a_name_or_label_that_is_not_emitted_is_found() {
    let exposition = exposition().await;
    let emitted = exposition.labels();
    let found = |expression: &str| unknown(expression, &emitted);
    assert_eq!(found(r#"sum by (scope) (idempotency_requests_total{outcome="a",scope=~"b, c"})"#), [] as [&str; 0]);
    assert_eq!(found("rate(idempotency_request_total[5m])"), ["idempotency_request_total"]);
    assert_eq!(found(r#"idempotency_in_flight{scope="a",key="b"}"#), ["key"]);
    assert_eq!(found("sum by (store, caller) (idempotency_store_errors_total)"), ["caller"]);
    assert!(!check(&["sum by (".to_owned()]).0);
}
