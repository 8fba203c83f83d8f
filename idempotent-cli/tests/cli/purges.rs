//! Tests of `purge`: it asks, needs a confirmation, and purges.

use crate::shop::Shop;

const CUT_OFF: [&str; 4] = ["purge", "--scope", "transfers", "cut-off-8e03978e"];
const RUNNING: [&str; 4] = ["purge", "--scope", "payouts", "running-8e03978e"];

#[tokio::test]
async fn nothing_is_purged_without_a_yes() {
    for shop in Shop::of_every_kind().await {
        let silent = shop.asks(&CUT_OFF).await;
        assert_eq!(silent.code, Some(4), "{silent:?}");
        assert!(silent.error.contains("there is no terminal to ask on, so confirm with `--yes`"), "{silent:?}");
        for answer in ["no", "y", ""] {
            let rejected = shop.asks_a_person(&RUNNING, answer).await;
            assert_eq!(rejected.code, Some(4), "{rejected:?}");
            assert!(
                rejected.out.contains("a retry that reaches another process runs it a second time beside the first"),
                "{rejected:?}"
            );
            assert!(rejected.out.contains("only the answer `yes` confirms"), "{rejected:?}");
        }
        assert_eq!(shop.asks(&["list", "--json"]).await.json()["scanned"], 4);

        let confirmed = shop.asks_a_person(&RUNNING, "yes").await;
        assert_eq!(confirmed.code, Some(0), "{confirmed:?}");
        assert!(confirmed.out.contains("purged: a retry with this key runs the handler again"), "{confirmed:?}");
        let purged = shop.asks(&[&CUT_OFF[..], &["--yes", "--json"]].concat()).await.json();
        assert_eq!((&purged["purged"], &purged["entry"]["state"]), (&true.into(), &"outcome_unknown".into()));
        // The running handler may have claimed its key again by now, with the next renewal of its lease.
        assert_eq!(shop.asks(&["list", "--json"]).await.json()["counts"]["outcome_unknown"], 0);
        let again = shop.asks(&[&CUT_OFF[..], &["--yes"]].concat()).await;
        assert_eq!(again.code, Some(1), "{again:?}");
        assert!(again.error.contains("no entry has this scope, caller and key"), "{again:?}");
    }
}

#[tokio::test]
async fn an_entry_of_a_listing_is_purged_by_its_id() {
    for shop in Shop::of_every_kind().await {
        let listed = shop.asks(&["stuck", "--json"]).await.json();
        let id = listed["entries"][0]["id"].as_str().expect("an id").to_owned();
        assert_eq!(shop.asks(&["purge", "--id", &id, "--yes"]).await.code, Some(0));
        assert_eq!(shop.asks(&["stuck", "--check"]).await.code, Some(0));
        let again = shop.asks(&["purge", "--id", &id, "--yes"]).await;
        assert_eq!(again.code, Some(1), "{again:?}");
        assert!(again.error.contains(&format!("no entry of this store has the id {id}")), "{again:?}");
    }
}

#[tokio::test]
async fn what_changes_while_a_person_thinks_is_not_purged() {
    for shop in Shop::of_every_kind().await {
        let late = shop.asks_a_person_who_waits(&RUNNING, async || shop.finish_the_payout().await, "yes").await;
        assert_eq!(late.code, Some(4), "{late:?}");
        assert!(late.out.contains("the entry has changed meanwhile; look at it again"), "{late:?}");
        assert_eq!(shop.asks(&["list", "--json"]).await.json()["counts"]["completed"], 2);
    }
}
