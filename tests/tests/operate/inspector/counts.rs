//! How many keys are in which state, which keys these are, and how many entries are read.

use std::time::Duration;

use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{MemoryStore, RedisStore, StoreAdmin};
use idempotent_runtime::{AfterCrash, IdempotencyLayer, Policy, RecordKey, Registry};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::stores;
use serde_json::{Value, json};

use crate::inspector::shop::{Shop, complete, leave_behind};
use crate::inspector::shop_handlers::BODY;
use crate::inspector::stores::on_every_store;

on_every_store!(every_state_is_told, claims_come_oldest_first_and_records_newest_first);

async fn every_state_is_told(store: impl StoreAdmin + Clone) {
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    shop.leave_every_state(&store).await;

    let summary = shop.json("/api/summary").await;
    let counts = json!({
        "outcome_unknown": 1, "damaged": 0, "past_lease": 1, "in_flight": 1, "completed": 1, "response_not_recorded": 1,
    });
    assert_eq!(summary["counts"], counts);
    assert_eq!((&summary["scanned"], &summary["complete"]), (&json!(5), &json!(true)));
    assert_eq!(summary["scopes"]["transfers"]["outcome_unknown"], 1);
    assert_eq!((&summary["store"], &summary["stores"]), (&json!("default"), &json!(["default"])));

    let listed = shop.json("/api/entries?reveal=keys").await;
    let told = |state: &str| {
        let mut of_state = listed["entries"].as_array().expect("a list").iter().filter(|entry| entry["state"] == state);
        (of_state.next().expect("one entry").clone(), of_state.count())
    };
    let (completed, others) = told("completed");
    assert_eq!((&completed["key"], &completed["caller"], others), (&json!("completed-8e03978e"), &json!("alice"), 0));
    assert_eq!((&completed["status"], &completed["body_bytes"]), (&json!(201), &json!(BODY.len())));
    let (unrecorded, _) = told("response_not_recorded");
    assert_eq!((&unrecorded["status"], &unrecorded["body_bytes"]), (&json!(200), &Value::Null));
    let (running, _) = told("in_flight");
    assert_eq!((&running["key"], &running["attempt"]), (&json!("running-8e03978e"), &json!(1)));
    assert!(running["lease_left_ms"].as_u64().is_some_and(|left| (1..=30_000).contains(&left)), "{running}");
    let (cut_off, _) = told("outcome_unknown");
    assert_eq!((&cut_off["key"], &cut_off["lease_left_ms"]), (&json!("cut-off-8e03978e"), &Value::Null));
    assert_eq!(told("past_lease").0["key"], "left-behind-8e03978e");

    let only = shop.json("/api/entries?state=in_flight").await;
    assert_eq!(only["entries"].as_array().expect("a list").len(), 1);
    let of_scope = shop.json("/api/entries?scope=exports").await;
    assert_eq!(
        (of_scope["entries"].as_array().expect("a list").len(), &of_scope["counts"]["completed"]),
        (1, &json!(0))
    );

    for path in ["", "?state=completed", "/api/entries", "/api/summary", "/api/handlers"] {
        assert!(!shop.get(path).await.text().contains(BODY), "{path}");
    }
    shop.runs.let_finish(1);
    shop.runs.until_finished(1).await;
}

async fn claims_come_oldest_first_and_records_newest_first(store: impl StoreAdmin + Clone) {
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let names = ["z-first", "a-second", "m-third", "b-fourth"];
    for name in names {
        leave_behind(&store, &RecordKey::new("payouts", None, name)).await;
        shop.charge("alice", name).await;
        until_the_clock_goes_on();
    }
    let keys = |listed: Value| -> Vec<String> {
        let entries = listed["entries"].as_array().expect("a list").clone();
        entries.iter().map(|entry| entry["key"].as_str().expect("a key").to_owned()).collect()
    };
    assert_eq!(keys(shop.json("/api/entries?state=past_lease&reveal=keys").await), names);
    let mut newest_first = names;
    newest_first.reverse();
    assert_eq!(keys(shop.json("/api/entries?state=completed&reveal=keys").await), newest_first);
}

/// Waits for the next millisecond, because times that are shown in whole milliseconds must differ.
fn until_the_clock_goes_on() {
    let now = || std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
    let before = now();
    while now() == before {
        std::hint::spin_loop();
    }
}

#[tokio::test]
async fn a_part_is_never_shown_as_the_whole() {
    let store = MemoryStore::new();
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    for number in 0..150 {
        leave_behind(&store, &RecordKey::new("payouts", None, &number.to_string())).await;
    }
    let part = shop.json("/api/summary?limit=149").await;
    assert_eq!((&part["scanned"], &part["complete"]), (&json!(149), &json!(false)));
    assert_eq!(part["counts"]["past_lease"], 149);
    let whole = shop.json("/api/summary?limit=150").await;
    assert_eq!((&whole["scanned"], &whole["complete"]), (&json!(150), &json!(true)));

    let page = shop.get("?limit=149").await;
    assert!(page.text().contains("A part of the whole"), "{}", page.text());
    assert!(page.text().contains("Count up to 1,490"), "{}", page.text());
    let page = shop.get("").await;
    assert!(page.text().contains("All 150 entries of this store were counted."));
    assert!(page.text().contains("oldest 100 of 150"), "{}", page.text());
}

#[tokio::test]
async fn handlers_are_told_with_their_policies() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let told = shop.json("/api/handlers").await;
    let handlers = told["handlers"].as_array().expect("a list");
    let of = |scope: &str| handlers.iter().find(|handler| handler["scope"] == scope).expect("it is annotated");
    let payouts = of("payouts");
    assert_eq!((&payouts["cache"], &payouts["ttl_ms"]), (&json!("201, 409"), &json!(7 * 24 * 3600 * 1000)));
    assert_eq!((&payouts["in_flight"], &payouts["after_crash"]), (&json!("wait 5s"), &json!("rerun")));
    assert!(payouts["handler"].as_str().is_some_and(|name| name.ends_with("shop_handlers::pay_out")), "{payouts}");
    assert!(payouts["file"].as_str().is_some_and(|file| file.ends_with("shop_handlers.rs")), "{payouts}");
    assert_eq!((&of("charges")["caller"], &of("charges")["fingerprint"]), (&json!(true), &json!("none")));
    assert_eq!((&of("exports")["cache"], &of("exports")["max_body"]), (&json!("200-299, 303"), &json!(8)));
    assert_eq!((&of("transfers")["after_crash"], &of("transfers")["required"]), (&json!("reject"), &json!(true)));
    assert!(shop.get("").await.text().contains("pay_out"));

    let registry =
        Registry::builder(MemoryStore::new()).policy("payouts", |policy| policy.ttl(Duration::from_hours(1)));
    let registry = registry.expect("a valid override").build();
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let told = shop.json("/api/handlers").await;
    let payouts = told["handlers"].as_array().and_then(|told| told.iter().find(|one| one["scope"] == "payouts"));
    assert_eq!(payouts.expect("it is annotated")["ttl_ms"], 3600 * 1000, "as the configuration says");
}

/// Layers are not in the list of handlers, but their policies count like those of handlers.
#[tokio::test]
async fn layer_claim_that_never_reruns_is_an_unknown_outcome() {
    let store = MemoryStore::new();
    let registry = Registry::new(store.clone());
    leave_behind(&store, &RecordKey::new("layer-of-the-inspector", None, "k")).await;
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    assert_eq!(shop.json("/api/summary").await["counts"]["past_lease"], 1);
    let policy = Policy::builder("layer-of-the-inspector").after_crash(AfterCrash::Reject).build();
    let _layer = IdempotencyLayer::new(policy.expect("the policy is valid"));
    assert_eq!(shop.json("/api/summary").await["counts"]["outcome_unknown"], 1);
}

/// The part that is read contains only records, and the claims are found by their index.
async fn claims_are_found_beyond_the_part(store: impl StoreAdmin + Clone) {
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    for number in 0..30 {
        complete(&store, &RecordKey::new("charges", None, &number.to_string())).await;
    }
    for number in 0..3 {
        leave_behind(&store, &RecordKey::new("payouts", None, &number.to_string())).await;
    }
    let part = shop.json("/api/entries?limit=10").await;
    assert_eq!((&part["complete"], &part["all_claims"]), (&json!(false), &json!(true)), "{part}");
    assert_eq!(part["counts"]["past_lease"], 3);
    let whole = shop.json("/api/summary").await;
    assert_eq!((&whole["counts"]["past_lease"], &whole["counts"]["completed"]), (&json!(3), &json!(30)));
    assert_eq!((&whole["scanned"], &whole["complete"], &whole["all_claims"]), (&json!(33), &json!(true), &json!(true)));
    let id = part["entries"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(shop.json(&format!("/api/entries/{id}?limit=10")).await["entry"]["id"], id);
    let page = shop.get("?limit=10").await;
    assert!(page.text().contains("All claims were found"), "{}", page.text());
}

#[tokio::test]
async fn claims_in_memory_are_found_beyond_the_part() {
    claims_are_found_beyond_the_part(MemoryStore::new()).await;
}

#[tokio::test]
async fn claims_in_sqlite_are_found_beyond_the_part() {
    let (store, _folder) = stores::sqlite().await;
    claims_are_found_beyond_the_part(store).await;
}

#[tokio::test]
async fn claims_in_postgres_are_found_beyond_the_part() {
    claims_are_found_beyond_the_part(stores::postgres(10).await).await;
}

#[tokio::test]
async fn claims_in_redis_are_found_beyond_the_part() {
    claims_are_found_beyond_the_part(stores::redis().await).await;
}

#[tokio::test]
async fn claims_in_a_cluster_are_found_beyond_the_part() {
    claims_are_found_beyond_the_part(stores::redis_cluster().await).await;
}

/// A process that dies before it has sent the name of its claim leaves such a claim.
#[tokio::test]
async fn claim_in_redis_without_its_name_is_in_the_listing() {
    let (server, prefix) = (RedisServer::shared().await, stores::prefix());
    let store = RedisStore::builder(&server.url()).prefix(&prefix).open().await.expect("the store opens");
    for number in 0..2 {
        leave_behind(&store, &RecordKey::new("payouts", None, &number.to_string())).await;
    }
    let listed = async || store.claims(None, 10).await.expect("it lists").expect("there is an index").entries.len();
    assert_eq!(listed().await, 2);
    assert_eq!(server.command::<u64>(&format!("ZREM {prefix}claims {prefix}payouts//1")).await, 1);
    assert_eq!(listed().await, 1);
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    assert_eq!(shop.json("/api/summary").await["counts"]["past_lease"], 2);
}
