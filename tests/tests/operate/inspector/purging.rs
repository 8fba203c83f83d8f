//! A purge: rejected, confirmed, executed, and written to the audit.

use std::time::Duration;

use axum::http::StatusCode;
use idempotent_runtime::inspector::{AUDIT_TARGET, Inspector};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry};
use idempotent_tests::{Answer, Fault, FaultyStore, Logs, answer, eventually};
use reqwest::Method;
use serde_json::json;

use crate::inspector::shop::{AT, Shop};
use crate::inspector::stores::on_every_store;

on_every_store!(
    a_purge_is_rejected_unless_it_is_allowed_and_confirmed,
    what_was_purged_runs_again,
    what_was_purged_is_not_at_hand_any_more
);

const CUT_OFF: [(&str, &str); 2] = [("scope", "transfers"), ("key", "cut-off-8e03978e")];
const RUNNING: [(&str, &str); 2] = [("scope", "payouts"), ("key", "running-8e03978e")];

fn assert_rejected(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!((answer.status, answer.rejection().as_str()), (status, code), "{}", answer.text());
}

async fn confirmation(shop: &Shop, fields: &[(&str, &str)]) -> String {
    let found = shop.form("/api/look-up", fields).await.json();
    found["confirm"].as_str().expect("it may be purged").to_owned()
}

async fn a_purge_is_rejected_unless_it_is_allowed_and_confirmed(store: impl StoreAdmin + Clone) {
    let logs = Logs::collect();
    let registry = Registry::new(store.clone());
    let shows = Shop::open(&registry, Inspector::new(&registry)).await;
    shows.leave_every_state(&store).await;
    let purges = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    let confirm = confirmation(&purges, &CUT_OFF).await;
    let found = purges.form("/api/look-up", &CUT_OFF).await.json();
    assert!(found["consequence"].as_str().is_some_and(|text| text.contains("find out first")), "{found}");

    let confirmed = [CUT_OFF[0], CUT_OFF[1], ("confirm", &confirm)];
    assert_rejected(&shows.form("/api/purge", &confirmed).await, StatusCode::FORBIDDEN, "purge_not_allowed");
    let id = found["entry"]["id"].as_str().expect("an id");
    let by_id = format!("/api/entries/{id}");
    let delete = answer(shows.asking(Method::DELETE, &format!("{by_id}?confirm={confirm}"))).await;
    assert_rejected(&delete, StatusCode::FORBIDDEN, "purge_not_allowed");
    let page = shows.form("", &[&confirmed[..], &[("action", "purge")]].concat()).await;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    assert!(!shows.form("", &CUT_OFF).await.text().contains("Purge"), "there is no button that does nothing");

    let unconfirmed = purges.form("/api/purge", &CUT_OFF).await;
    assert_rejected(&unconfirmed, StatusCode::PRECONDITION_REQUIRED, "not_confirmed");
    assert_rejected(
        &answer(purges.asking(Method::DELETE, &by_id)).await,
        StatusCode::PRECONDITION_REQUIRED,
        "not_confirmed",
    );
    let of_another = confirmation(&purges, &RUNNING).await;
    let crossed = purges.form("/api/purge", &[CUT_OFF[0], CUT_OFF[1], ("confirm", &of_another)]).await;
    assert_rejected(&crossed, StatusCode::CONFLICT, "changed");
    assert_eq!(purges.json("/api/summary").await["scanned"], 5, "nothing of it took effect");

    let done = purges.form("/api/purge", &confirmed).await;
    assert_eq!((done.status, &done.json()["purged"]), (StatusCode::OK, &json!(true)), "{}", done.text());
    assert_rejected(&purges.form("/api/purge", &confirmed).await, StatusCode::NOT_FOUND, "not_found");
    assert_eq!(purges.json("/api/summary").await["scanned"], 4);

    let audit: Vec<String> = logs.of_level("WARN").into_iter().filter(|line| line.contains(AUDIT_TARGET)).collect();
    for outcome in
        ["rejected: purge_not_allowed", "rejected: not_confirmed", "rejected: changed", "purged", "nothing_there"]
    {
        assert!(audit.iter().any(|line| line.contains(&format!("outcome=\"{outcome}\""))), "{outcome}: {audit:#?}");
    }
    let done = audit.iter().find(|line| line.contains("outcome=\"purged\"")).expect("checked above");
    for field in [
        "action=\"purge\"",
        "by=\"alice\"",
        "store=\"default\"",
        "scope=\"transfers\"",
        "key=\"cut-… (16)\"",
        "state=\"outcome_unknown\"",
        id,
    ] {
        assert!(done.contains(field), "{field} in {done}");
    }
    assert!(!logs.text().contains("cut-off-8e03978e"), "no key is logged");
}

async fn what_was_purged_runs_again(store: impl StoreAdmin + Clone) {
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    shop.begin_payout("running-8e03978e").await;
    let found = shop.form("/api/look-up", &RUNNING).await.json();
    assert!(found["consequence"].as_str().is_some_and(|text| text.contains("beside the first")), "{found}");
    let id = found["entry"]["id"].as_str().expect("an id");
    let confirm = found["confirm"].as_str().expect("it may be purged");
    let purged = answer(shop.asking(Method::DELETE, &format!("/api/entries/{id}?confirm={confirm}"))).await;
    assert_eq!(purged.status, StatusCode::OK, "{}", purged.text());
    // The page warns of this: another process runs the handler again. In the first process, the key stays claimed.
    let elsewhere = Registry::new(store);
    let elsewhere = Shop::open(&elsewhere, Inspector::new(&elsewhere)).await;
    elsewhere.begin_payout("running-8e03978e").await;
    assert_eq!((shop.runs.started(), elsewhere.runs.started()), (1, 1));
    for shop in [shop, elsewhere] {
        shop.runs.let_finish(1);
        shop.runs.until_finished(1).await;
    }
}

async fn what_was_purged_is_not_at_hand_any_more(store: impl StoreAdmin) {
    let registry = Registry::builder(store).near_cache(1_000_000, Duration::from_hours(1)).build();
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    let is_replay = async || {
        let charge = shop.server.post("/charges").header("x-caller", "alice").header("idempotency-key", "k");
        answer(charge).await.is_replay()
    };
    assert_eq!((is_replay().await, is_replay().await), (false, true));

    let charge = [("scope", "charges"), ("caller", "alice"), ("key", "k")];
    let confirm = confirmation(&shop, &charge).await;
    let purged = shop.form("/api/purge", &[&charge[..], &[("confirm", &confirm)]].concat()).await;
    assert_eq!(purged.status, StatusCode::OK, "{}", purged.text());
    assert!(!is_replay().await);
}

#[tokio::test]
async fn record_purged_before_its_completion_is_not_at_hand() {
    let store = FaultyStore::new();
    let registry = Registry::builder(store.clone()).near_cache(1_000_000, Duration::from_hours(1)).build();
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    let charge = || answer(shop.server.post("/charges").header("x-caller", "alice").header("idempotency-key", "k"));
    store.on_complete(Fault::AnswerIsLate);
    let first = tokio::spawn(charge());
    eventually(async || store.completions(), |&completions| completions == 1).await;

    let fields = [("scope", "charges"), ("caller", "alice"), ("key", "k")];
    let confirm = confirmation(&shop, &fields).await;
    let purged = shop.form("/api/purge", &[&fields[..], &[("confirm", &confirm)]].concat()).await;
    assert_eq!(purged.status, StatusCode::OK, "{}", purged.text());
    store.on_complete(Fault::None);
    store.let_through();
    assert_eq!(first.await.expect("it runs").status, StatusCode::CREATED);
    assert!(!charge().await.is_replay());
}

#[tokio::test]
async fn what_is_looked_up_and_not_there_is_not_at_hand_any_more() {
    let store = FaultyStore::new();
    let registry = Registry::builder(store.clone()).near_cache(1_000_000, Duration::from_hours(1)).build();
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let charge = || answer(shop.server.post("/charges").header("x-caller", "alice").header("idempotency-key", "k"));
    charge().await;
    let by_another_process = store.purge(&RecordKey::new("charges", Some("alice"), "k")).await;
    assert!(by_another_process.expect("memory answers"));
    assert!(charge().await.is_replay());

    let fields = [("scope", "charges"), ("caller", "alice"), ("key", "k")];
    assert_eq!(shop.form("/api/look-up", &fields).await.status, StatusCode::NOT_FOUND);
    assert!(!charge().await.is_replay());
}

#[tokio::test]
async fn what_has_changed_since_the_look_is_not_purged() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    shop.begin_payout("running-8e03978e").await;
    let confirm = confirmation(&shop, &RUNNING).await;
    shop.runs.let_finish(1);
    shop.runs.until_finished(1).await;
    assert_eq!(registry.drain(idempotent_tests::PATIENCE).await, 0);
    let late = shop.form("/api/purge", &[RUNNING[0], RUNNING[1], ("confirm", &confirm)]).await;
    assert_rejected(&late, StatusCode::CONFLICT, "changed");
    assert_eq!(shop.json("/api/summary").await["counts"]["completed"], 1);
}

#[tokio::test]
async fn a_page_of_another_site_cannot_purge() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    shop.charge("alice", "completed-8e03978e").await;
    let charge = [("scope", "charges"), ("caller", "alice"), ("key", "completed-8e03978e")];
    let confirm = confirmation(&shop, &charge).await;
    let fields = [charge[0], charge[1], charge[2], ("confirm", confirm.as_str()), ("action", "purge")];
    let own = format!("http://{}", shop.server.address());
    let sent = async |path: &str, headers: &[(&'static str, &str)]| {
        let mut request = shop.asking(Method::POST, path).form(&fields);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request).await
    };
    for foreign in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "none")],
        &[("sec-fetch-site", "cross-site"), ("origin", &own)],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "")],
    ] {
        assert_rejected(&sent("/api/purge", foreign).await, StatusCode::FORBIDDEN, "cross_site");
        assert_eq!(sent("", foreign).await.status, StatusCode::FORBIDDEN, "{foreign:?}");
    }
    assert_eq!(shop.json("/api/summary").await["scanned"], 1);
    assert_eq!(sent("/api/purge", &[("origin", &own)]).await.status, StatusCode::OK);
    shop.charge("alice", "completed-8e03978e").await;
    let confirm = confirmation(&shop, &charge).await;
    let fields = [charge[0], charge[1], charge[2], ("confirm", confirm.as_str()), ("action", "purge")];
    let request = shop.asking(Method::POST, "").form(&fields).header("sec-fetch-site", "same-origin");
    let page = answer(request.header("origin", "null")).await;
    assert!(page.text().contains("<h2>Purged</h2>"), "{}", page.text());
    assert_eq!(shop.json("/api/summary").await["scanned"], 0);
}

#[tokio::test]
async fn only_the_methods_that_change_something_do() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    for (method, path) in [(Method::GET, "/api/purge"), (Method::PUT, "/api/entries/0"), (Method::DELETE, "")] {
        assert_eq!(answer(shop.asking(method.clone(), path)).await.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    let stranger = shop.server.request(Method::GET, AT);
    assert_eq!(answer(stranger).await.status, StatusCode::UNAUTHORIZED, "the authentication is the application's");
}
