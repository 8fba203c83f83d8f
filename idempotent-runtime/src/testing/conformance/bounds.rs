//! The limits of a store with a bound.

use std::sync::Arc;

use crate::store::claim::{Claim, Held, Owner, Token};
use crate::store::contract::StoreAdmin;
use crate::store::error::StoreError;
use crate::testing::conformance::fixtures::{LONG, claim, complete, purge, record, request, unique_key};

/// An owner that has used up its share is rejected with [`StoreError::OverQuota`], and keeps its records. Other owners
/// get their claims. Entries that the owner no longer has do not count.
///
/// The rule is only for a store with a small bound. It writes records of about 300 bytes until the store rejects one,
/// so [`all`](super::all) does not run it.
///
/// # Panics
///
/// Panics if the store breaks the rule, or takes a million records.
pub async fn an_owner_that_uses_up_its_share_stops_no_other<S: StoreAdmin>(store: &Arc<S>) {
    let (one, other) = (Owner::from_u128(Token::unique().as_u128()), Owner::from_u128(Token::unique().as_u128()));
    let mut kept = Vec::new();
    let rejected = loop {
        let (key, request) = (unique_key("share"), request().with_owner(one));
        match store.claim(&key, request).await {
            Ok(_) => assert_eq!(complete(store, &key, request.token, &record(), LONG).await, Held::Yes),
            Err(error) => break error,
        }
        kept.push(key);
        assert!(kept.len() < 1_000_000, "the store has no bound");
    };
    assert!(matches!(rejected, StoreError::OverQuota), "{rejected}");
    for key in [&kept[0], &kept[kept.len() - 1]] {
        let retry = request().with_owner(one);
        assert!(matches!(claim(store, key, retry).await, Claim::Completed(_)), "a record was evicted");
    }
    let own = request().with_owner(other);
    assert_eq!(claim(store, &unique_key("share"), own).await, Claim::Acquired { attempt: 1 });
    for key in &kept {
        assert!(purge(store, key).await);
    }
    let again = request().with_owner(one);
    assert_eq!(claim(store, &unique_key("share"), again).await, Claim::Acquired { attempt: 1 });
}
