//! A claim that arrives after it was given back is rejected, in every slot of a Cluster.

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

/// The key of a client and the prefix of an application decide in which slot a name is.
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

/// The client of a Cluster can send a claim twice without telling the store. The second one may arrive after the
/// release.
#[tokio::test]
async fn cluster_keeps_second_try_of_a_released_claim_out() {
    let cluster = RedisCluster::shared().await;
    let store = RedisStore::cluster(cluster.urls()).prefix("tries:").open().await.expect("the store opens");
    let (key, twice) = (RecordKey::new("tries", None, "k"), request(AfterCrash::Reject));
    let claimed = store.claim(&key, twice).await.expect("the store claims");
    assert_eq!(claimed, Claim::Acquired { attempt: 1 });
    assert_eq!(store.release(&key, twice.token).await.expect("the store answers"), Held::Yes);
    let arrived = store.claim(&key, twice).await;
    assert!(arrived.is_err(), "{arrived:?}");
    let next = store.claim(&key, request(AfterCrash::Reject)).await.expect("the store claims");
    assert_eq!(next, Claim::Acquired { attempt: 1 });
}
