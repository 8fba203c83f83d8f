//! Stores of several prefixes on one server.

use std::time::Duration;

use idempotent_runtime::store::{Claim, ClaimRequest, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::redis::RedisServer;

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
