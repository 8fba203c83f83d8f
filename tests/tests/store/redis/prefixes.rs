//! Stores with several prefixes on one server.

use std::time::Duration;

use idempotent_runtime::store::{Claim, ClaimRequest, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::stores::prefix;

#[tokio::test]
async fn prefix_shows_and_purges_no_name_of_a_longer_one() {
    let server = RedisServer::start(&[]).await;
    let scopes = ["charges", "-eu:charges", "eu:charges", "shop:charges", "app::charges"];
    let mut stores = Vec::new();
    for prefix in ["shop", "shop-eu:", "shop:eu:", ""] {
        let store = RedisStore::builder(&server.url()).prefix(prefix).open().await.expect("the store opens");
        for scope in scopes {
            let claim = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
                .with_lease(Duration::from_mins(1))
                .with_ttl(Duration::from_mins(2));
            let claimed = store.claim(&RecordKey::new(scope, None, prefix), claim).await.expect("the store claims");
            assert_eq!(claimed, Claim::Acquired { attempt: 1 }, "{prefix} {scope}");
        }
        stores.push((prefix, store));
    }
    for (prefix, store) in &stores {
        let listed = store.list(None, 100).await.expect("the store lists");
        let mut listed: Vec<_> = listed.entries.into_iter().map(|entry| entry.key).collect();
        listed.sort();
        let mut own: Vec<_> = scopes.iter().map(|scope| RecordKey::new(scope, None, prefix)).collect();
        own.sort();
        assert_eq!(listed, own, "{prefix}");
        assert_eq!(store.unknown_outcomes().await.expect("the store counts").len(), 0);
        for (other, _) in &stores {
            for scope in scopes {
                let key = RecordKey::new(scope, None, other);
                let is_own = other == prefix;
                assert_eq!(
                    store.get(&key).await.expect("the store looks").is_some(),
                    is_own,
                    "{prefix} {other} {scope}"
                );
                if !is_own {
                    assert!(!store.purge(&key).await.expect("the store purges"), "{prefix} {other} {scope}");
                }
            }
        }
    }
}

/// A Cluster chooses the slot of a name by the text between its first braces.
#[tokio::test]
async fn keys_with_equal_braces_are_spread_over_a_cluster() {
    let (cluster, prefix) = (RedisCluster::shared().await, prefix());
    let store = RedisStore::cluster(cluster.urls()).prefix(&prefix).open().await.expect("the store opens");
    let mut keys: Vec<_> = (0..100).map(|n| RecordKey::new("charges", None, &format!("{n}-{{x}}"))).collect();
    keys.extend((0..100).map(|n| RecordKey::new("{x}", Some("{x}"), &n.to_string())));
    for key in &keys {
        let claim = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
            .with_lease(Duration::from_mins(1))
            .with_ttl(Duration::from_mins(2));
        assert_eq!(store.claim(key, claim).await.expect("the store claims"), Claim::Acquired { attempt: 1 });
    }
    for master in cluster.masters() {
        let names: Vec<String> = master.command(&format!("KEYS {prefix}*")).await;
        assert!((30..=120).contains(&names.len()), "{} of 200 on one of three servers", names.len());
    }
    let mut listed: Vec<_> =
        store.list(None, 1000).await.expect("the store lists").entries.into_iter().map(|entry| entry.key).collect();
    listed.sort();
    keys.sort();
    assert_eq!(listed, keys);
    assert!(store.purge(&keys[0]).await.expect("the store purges"));
}
