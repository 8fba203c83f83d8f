//! Each argument of the attribute is described in the guide, has a method of `Policy::builder`, and is told by the inspector.

use std::fs;
use std::path::Path;

use axum::http::StatusCode;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use serde_json::json;
use sqlx::Sqlite;

use crate::inspector::shop::Shop;

#[allow(dead_code, reason = "the inspector tells its policy, and no route serves it")]
#[idempotent(scope = "told-arguments", shared_scope, isolation = "serializable")]
async fn told(_tx: Tx<Sqlite>) -> StatusCode {
    StatusCode::CREATED
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).expect("the file is there")
}

/// The words that follow `before` at the begin of a line.
fn words(text: &str, before: &str) -> Vec<String> {
    let after = text.lines().filter_map(|line| line.strip_prefix(before));
    let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '_').collect();
    after.map(word).collect()
}

/// In the order of `ARGUMENTS`.
fn arguments() -> Vec<String> {
    let model = read("idempotent-macros/src/model.rs");
    let (_, list) = model.split_once("ARGUMENTS: &[&str] = &[\n").expect("the list of all arguments");
    let (list, _) = list.split_once("];").expect("its end");
    words(list, "    \"")
}

/// The arguments of which `names` has nothing, beside those that `exceptions` lead to another name.
fn missing(names: &[String], exceptions: &[(&str, &str)]) -> Vec<String> {
    let other = |argument: &str| exceptions.iter().find(|(of, _)| *of == argument).map(|(_, name)| *name);
    let is_missing = |argument: &String| !names.iter().any(|name| name == other(argument).unwrap_or(argument));
    arguments().into_iter().filter(is_missing).collect()
}

#[test]
fn guide_has_a_row_for_each_argument() {
    let mut rows = words(&read("idempotent-runtime/src/guide/arguments.md"), "| `");
    let arguments = arguments();
    rows.truncate(arguments.len());
    assert_eq!(rows, arguments);
    let changelog = read("CHANGELOG.md");
    assert!(changelog.contains(&format!("It has {} optional arguments.", arguments.len())));
}

#[test]
fn builder_has_a_method_for_each_argument() {
    let methods = words(&read("idempotent-runtime/src/policy/builder.rs"), "    pub fn ");
    let of_handlers = ["shared_scope", "key", "caller", "claim_after", "isolation", "crate"];
    let missing = missing(&methods, &[("scope", "builder"), ("fingerprint", "json_fingerprint")]);
    assert_eq!(missing, of_handlers, "only these need a handler");
}

#[tokio::test]
async fn inspector_tells_each_argument() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let handlers = shop.json("/api/handlers").await;
    let handlers = handlers["handlers"].as_array().expect("a list");
    let told = handlers.iter().find(|handler| handler["scope"] == "told-arguments").expect("it is annotated");
    assert_eq!((&told["shared_scope"], &told["isolation"]), (&json!(true), &json!("serializable")));
    let other = handlers.iter().find(|handler| handler["scope"] == "charges").expect("it is annotated");
    assert_eq!((&other["shared_scope"], &other["isolation"]), (&json!(false), &json!(null)));

    let names: Vec<String> = told.as_object().expect("an object").keys().cloned().collect();
    let renamed = [("ttl", "ttl_ms"), ("lease", "lease_ms"), ("cache_if", "cache"), ("header", "key")];
    assert_eq!(missing(&names, &renamed), ["claim_after", "crate"], "only these are no part of the policy");

    let page = shop.get("").await;
    let row = page.text().split("<tr>").skip(1).find(|row| row.contains("told-arguments")).expect("its row");
    assert!(row.contains("shared") && row.contains("serializable"), "{row}");
}
