//! Tests of `list`, `stuck` and `show`.

use serde_json::{Value, json};

use crate::shop::{Shop, idempotent};
use crate::shop_handlers::BODY;

#[tokio::test]
async fn every_store_is_listed() {
    for shop in Shop::of_every_kind().await {
        let listed = shop.asks(&["list", "--json", "--reveal"]).await;
        assert!(!listed.out.contains(BODY));
        let told = listed.json();
        let counts = json!({
            "outcome_unknown": 1, "damaged": 0, "past_lease": 0, "in_flight": 1, "completed": 1,
            "response_not_recorded": 1,
        });
        assert_eq!((&told["counts"], &told["scanned"], &told["complete"]), (&counts, &json!(4), &json!(true)));
        let keys = |told: &Value| -> Vec<String> {
            let entries = told["entries"].as_array().expect("a list");
            entries.iter().map(|entry| entry["key"].as_str().expect("a key").to_owned()).collect()
        };
        let all = ["cut-off-8e03978e", "running-8e03978e", "completed-8e03978e", "unrecorded-8e03978e"];
        assert_eq!(keys(&told), all, "the most urgent first");
        let running = shop.asks(&["list", "--json", "--reveal", "--state", "in_flight"]).await.json();
        assert_eq!(keys(&running), ["running-8e03978e"]);
        let of_scope = shop.asks(&["list", "--json", "--reveal", "--scope", "exports"]).await.json();
        assert_eq!(keys(&of_scope), ["unrecorded-8e03978e"]);
        let stuck = shop.asks(&["stuck", "--json", "--reveal"]).await.json();
        assert_eq!(keys(&stuck), ["cut-off-8e03978e"]);

        let table = shop.asks(&["list"]).await;
        assert_eq!((table.code, table.error.as_str()), (Some(0), ""));
        assert!(
            table.out.starts_with("1 outcome_unknown, 1 in_flight, 1 completed, 1 response_not_recorded\n"),
            "{table:?}"
        );
        for words in ["comp… (18)", "201, 26 bytes", "body not recorded", "attempt 1, lease ", "alice"] {
            assert!(table.out.contains(words), "{words} in {}", table.out);
        }
        assert!(!table.out.contains("-8e03978e"), "keys are masked: {}", table.out);
        let short = shop.asks(&["list", "--limit", "1"]).await;
        assert!(short.out.contains("1 of 4 are listed"), "{}", short.out);
    }
}

#[tokio::test]
async fn monitoring_hears_of_what_is_stuck() {
    let quiet = Shop::sqlite().await;
    quiet.charge("completed-8e03978e").await;
    assert_eq!(quiet.asks(&["stuck", "--check"]).await.code, Some(0));
    let empty = Shop::sqlite().await.asks(&["stuck", "--check"]).await;
    assert_eq!((empty.out.as_str(), empty.code), ("there are no entries\n", Some(0)));
    for shop in Shop::of_every_kind().await {
        assert_eq!(shop.asks(&["stuck", "--check"]).await.code, Some(1));
        assert_eq!(shop.asks(&["stuck"]).await.code, Some(0));
        assert_eq!(shop.asks(&["stuck", "--check", "--scope", "charges"]).await.code, Some(0));
    }
}

#[tokio::test]
async fn one_key_is_shown() {
    for shop in Shop::of_every_kind().await {
        let charge = ["show", "--scope", "charges", "--caller", "alice", "completed-8e03978e"];
        let shown = shop.asks(&[&charge[..], &["--json"]].concat()).await.json();
        assert_eq!((&shown["entry"]["state"], &shown["entry"]["status"]), (&json!("completed"), &json!(201)));
        assert!(shown["entry"]["key"].is_null() && shown["consequence"].is_string(), "{shown}");
        let id = shown["entry"]["id"].as_str().expect("an id");
        let again = shop.asks(&["show", "--id", id, "--json"]).await.json();
        assert_eq!((&again["entry"]["id"], &again["entry"]["since"]), (&json!(id), &shown["entry"]["since"]));
        let person = shop.asks(&charge).await;
        for line in ["state     completed", "scope     charges", "caller    alice", "key       comp… (18)"] {
            assert!(person.out.contains(line), "{line} in {}", person.out);
        }
        let cut_off = shop.asks(&["show", "--scope", "transfers", "cut-off-8e03978e"]).await;
        for line in ["state     outcome_unknown", "kept      until it is resolved or purged"] {
            assert!(cut_off.out.contains(line), "{line} in {}", cut_off.out);
        }
        let missing = shop.asks(&["show", "--scope", "charges", "completed-8e03978e"]).await;
        assert_eq!(missing.code, Some(1), "{missing:?}");
    }
}

#[tokio::test]
async fn help_has_examples_and_the_exit_status() {
    let help = idempotent(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    for words in ["Examples:", "idempotent --store sqlite://", "Exit status:", "IDEMPOTENT_STORE"] {
        assert!(help.out.contains(words), "{words} in {}", help.out);
    }
}
