//! A claim that was given back is kept out in every slot of a Cluster.

use std::time::Duration;

use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::redis::RedisCluster;

fn request(after_crash: AfterCrash) -> ClaimRequest {
    let fingerprint = Fingerprint::from_bytes([1; 32]);
    ClaimRequest::new(Token::unique(), fingerprint)
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_mins(2))
        .with_after_crash(after_crash)
}

/// What a client writes in its key, or an application in its prefix, decides over the slot of a name.
#[tokio::test]
async fn cluster_keeps_given_back_claims_of_odd_names_out() {
    let cluster = RedisCluster::shared().await;
    for prefix in ["{app}:", "a}b:", "a{b:", "{}:"] {
        let store = RedisStore::cluster(cluster.urls()).prefix(prefix).open().await.expect("the store opens");
        for name in ["k", "{x}", "a}b{c", "{}", "}"] {
            let key = RecordKey::new("odd", None, name);
            let (late, other) = (request(AfterCrash::Reject), request(AfterCrash::Reject));
            assert_eq!(store.release(&key, late.token).await.expect("the store answers"), Held::No);
            let claimed = store.claim(&key, other).await.expect("the store claims");
            assert_eq!(claimed, Claim::Acquired { attempt: 1 }, "{prefix}{name}");
            assert!(store.purge(&key).await.expect("the store purges"));
            let arrived = store.claim(&key, late).await;
            assert!(arrived.is_err(), "{prefix}{name}: {arrived:?}");
        }
        let listed = store.list(None, 100).await.expect("the store lists");
        assert!(listed.entries.is_empty() && listed.damaged.is_empty(), "{listed:?}");
    }
}
