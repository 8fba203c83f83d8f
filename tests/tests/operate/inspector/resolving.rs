//! A resolution in the inspector: rejected, confirmed, executed, and written to the audit.

use axum::http::StatusCode;
use idempotent_runtime::inspector::{AUDIT_TARGET, Inspector};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry};
use idempotent_tests::{Answer, Logs, answer};
use reqwest::Method;
use serde_json::json;

use crate::inspector::shop::{Shop, leave_behind};
use crate::inspector::stores::on_every_store;

on_every_store!(a_resolution_is_rejected_unless_it_is_allowed_and_confirmed);

const CUT_OFF: [(&str, &str); 2] = [("scope", "transfers"), ("key", "cut-off-8e03978e")];
const RUNNING: [(&str, &str); 2] = [("scope", "payouts"), ("key", "running-8e03978e")];
const EXECUTED: [(&str, &str); 5] = [
    ("outcome", "executed"),
    ("status", "201"),
    ("headers", "content-type: text/plain\r\nx-transfer: tr_17"),
    ("body", "paid\r\n"),
    ("reason", "tr_17 is at the bank"),
];
const NOT_EXECUTED: [(&str, &str); 2] = [("outcome", "not_executed"), ("reason", "the bank has no transfer")];

fn assert_rejected(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!((answer.status, answer.rejection().as_str()), (status, code), "{}", answer.text());
}

async fn confirmation(shop: &Shop, fields: &[(&str, &str)]) -> String {
    let found = shop.form("/api/look-up", fields).await.json();
    found["confirm"].as_str().expect("it may be resolved").to_owned()
}

async fn a_resolution_is_rejected_unless_it_is_allowed_and_confirmed(store: impl StoreAdmin + Clone) {
    let logs = Logs::collect();
    let registry = Registry::new(store.clone());
    let shows = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    shows.leave_every_state(&store).await;
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve()).await;
    assert_eq!(shop.json("/api/summary").await["resolve_allowed"], true);
    let confirm = confirmation(&shop, &CUT_OFF).await;
    let confirmed = [&CUT_OFF[..], &EXECUTED, &[("confirm", &confirm)]].concat();

    assert_rejected(&shows.form("/api/resolve", &confirmed).await, StatusCode::FORBIDDEN, "resolve_not_allowed");
    let unconfirmed = shop.form("/api/resolve", &[&CUT_OFF[..], &EXECUTED].concat()).await;
    assert_rejected(&unconfirmed, StatusCode::PRECONDITION_REQUIRED, "not_confirmed");
    let crossed = shop.form("/api/resolve", &[&RUNNING[..], &EXECUTED, &[("confirm", &confirm)]].concat()).await;
    assert_rejected(&crossed, StatusCode::CONFLICT, "changed");
    assert_rejected(&shop.form("/api/purge", &confirmed[..2]).await, StatusCode::FORBIDDEN, "purge_not_allowed");
    let rejected = shop.server.post_with_key("/transfers", "cut-off-8e03978e").await;
    assert_eq!(rejected.rejection(), "outcome_unknown", "nothing of it took effect");

    let done = shop.form("/api/resolve", &confirmed).await;
    assert_eq!((done.status, &done.json()["resolved"]), (StatusCode::OK, &json!(true)), "{}", done.text());
    let retry = shop.server.post_with_key("/transfers", "cut-off-8e03978e").await;
    assert_eq!((retry.status, retry.text(), retry.is_replay()), (StatusCode::CREATED, "paid\r\n", true));
    assert!(retry.headers["x-transfer"] == "tr_17" && retry.headers["content-type"] == "text/plain");
    assert_rejected(&shop.form("/api/resolve", &confirmed).await, StatusCode::CONFLICT, "changed");

    let audit: Vec<String> = logs.of_level("WARN").into_iter().filter(|line| line.contains(AUDIT_TARGET)).collect();
    for outcome in ["rejected: resolve_not_allowed", "rejected: not_confirmed", "rejected: changed"] {
        assert!(audit.iter().any(|line| line.contains(&format!("outcome=\"{outcome}\""))), "{outcome}: {audit:#?}");
    }
    let done = audit.iter().filter(|line| line.contains("outcome=\"resolved_as_executed\"")).collect::<Vec<_>>();
    for field in
        ["action=\"resolve\"", "by=\"alice\"", "status=201", "reason=\"tr_17 is at the bank\"", "scope=\"transfers\""]
    {
        assert!(done.len() == 1 && done[0].contains(field), "{field} in {done:?}");
    }
    assert!(!logs.text().contains("cut-off-8e03978e"), "no key is logged");
}

#[tokio::test]
async fn a_form_has_room_for_what_a_handler_records() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve()).await;
    let cut_off = || shop.server.post_with_key("/transfers", "cut-off-8e03978e");
    assert_eq!(cut_off().await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let (confirm, body) = (confirmation(&shop, &CUT_OFF).await, "ü".repeat(1_500_000));
    let executed = [("outcome", "executed"), ("status", "201"), ("reason", "tr_17 is at the bank"), ("body", &body)];
    let done = shop.form("/api/resolve", &[&CUT_OFF[..], &executed, &[("confirm", &confirm)]].concat()).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text());
    assert!(cut_off().await.text() == body);
}

#[tokio::test]
async fn the_page_settles_what_was_not_executed() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve()).await;
    let cut_off = || shop.server.post_with_key("/transfers", "cut-off-8e03978e");
    assert_eq!(cut_off().await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let page = shop.form("", &[&CUT_OFF[..], &[("action", "look_up")]].concat()).await;
    let page = page.text();
    assert!(page.contains("Resolve this entry…") && !page.contains("Purge this entry…"), "{page}");
    let confirm = confirmation(&shop, &CUT_OFF).await;
    let form = [&CUT_OFF[..], &NOT_EXECUTED, &[("confirm", &confirm), ("action", "resolve")]].concat();
    // As a browser sends the form: with its empty fields.
    let form = [&form[..], &[("status", ""), ("headers", ""), ("body", ""), ("ttl", "")]].concat();
    let page = shop.form("", &form).await;
    assert!(page.text().contains("<h2>Resolved</h2>"), "{}", page.text());
    assert_eq!(cut_off().await.status, StatusCode::INTERNAL_SERVER_ERROR, "it runs again");
}

#[tokio::test]
async fn the_page_sends_the_lines_of_a_body_as_they_were_written() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve()).await;
    let cut_off = || shop.server.post_with_key("/transfers", "cut-off-8e03978e");
    assert_eq!(cut_off().await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let confirm = confirmation(&shop, &CUT_OFF).await;
    let page =
        shop.form("", &[&CUT_OFF[..], &EXECUTED, &[("confirm", &confirm), ("action", "resolve")]].concat()).await;
    assert!(page.text().contains("<h2>Resolved</h2>"), "{}", page.text());
    assert_eq!(cut_off().await.text(), "paid\n");
}

#[tokio::test]
async fn a_wrong_resolution_is_told_what_to_write() {
    let store = MemoryStore::new();
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve()).await;
    leave_behind(&store, &RecordKey::new("payouts", None, "left-behind")).await;
    let fields = [("scope", "payouts"), ("key", "left-behind")];
    let confirm = confirmation(&shop, &fields).await;
    for (wrong, words) in [
        (&[("outcome", "executed"), ("status", "201")][..], "say in `reason`"),
        (&[("outcome", "perhaps"), ("reason", "r")], "`outcome=executed` or `outcome=not_executed`"),
        (&[("outcome", "executed"), ("reason", "r")], "give the `status`"),
        (&[("outcome", "executed"), ("status", "101"), ("reason", "r")], "interim status"),
        (&[("outcome", "executed"), ("status", "201"), ("headers", "no colon"), ("reason", "r")], "is no header"),
        (
            &[("outcome", "executed"), ("status", "201"), ("headers", "set-cookie: a=b"), ("reason", "r")],
            "`set-cookie`",
        ),
        (&[("outcome", "executed"), ("status", "201"), ("ttl", "soon"), ("reason", "r")], "`24h` or `7d`"),
        (&[("outcome", "not_executed"), ("body", "paid"), ("reason", "r")], "has no response"),
    ] {
        let rejected = shop.form("/api/resolve", &[&fields[..], wrong, &[("confirm", &confirm)]].concat()).await;
        assert_rejected(&rejected, StatusCode::BAD_REQUEST, "invalid_finding");
        assert!(rejected.text().contains(words), "{words} in {}", rejected.text());
    }
    let in_address = answer(shop.asking(Method::GET, "/api/entries?body=paid")).await;
    assert_rejected(&in_address, StatusCode::BAD_REQUEST, "finding_in_address");
    let done = shop.form("/api/resolve", &[&fields[..], &NOT_EXECUTED, &[("confirm", &confirm)]].concat()).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text());
    let gone = shop.form("/api/resolve", &[&fields[..], &NOT_EXECUTED, &[("confirm", &confirm)]].concat()).await;
    assert_rejected(&gone, StatusCode::NOT_FOUND, "not_found");
}

#[tokio::test]
async fn what_runs_is_not_resolved() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve().allow_purge()).await;
    shop.begin_payout("running-8e03978e").await;
    let page = shop.form("", &[&RUNNING[..], &[("action", "look_up")]].concat()).await;
    let page = page.text();
    assert!(!page.contains("Resolve this entry…") && page.contains("Purge this entry…"), "{page}");
    let confirm = confirmation(&shop, &RUNNING).await;
    let running = shop.form("/api/resolve", &[&RUNNING[..], &NOT_EXECUTED, &[("confirm", &confirm)]].concat()).await;
    assert_rejected(&running, StatusCode::CONFLICT, "still_running");
    shop.runs.let_finish(1);
    shop.runs.until_finished(1).await;
}

#[tokio::test]
async fn a_page_of_another_site_cannot_resolve() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_resolve()).await;
    let cut_off = || shop.server.post_with_key("/transfers", "cut-off-8e03978e");
    assert_eq!(cut_off().await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let confirm = confirmation(&shop, &CUT_OFF).await;
    let form = [&CUT_OFF[..], &EXECUTED, &[("confirm", &confirm), ("action", "resolve")]].concat();
    for foreign in
        [("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site"), ("origin", "https://evil.example")]
    {
        for path in ["/api/resolve", ""] {
            let request = shop.asking(Method::POST, path).form(&form).header(foreign.0, foreign.1);
            assert_eq!(answer(request).await.status, StatusCode::FORBIDDEN, "{foreign:?}");
        }
    }
    assert_eq!(cut_off().await.rejection(), "outcome_unknown");
}
