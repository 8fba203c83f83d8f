//! The list of claims of a shard, and what a shard without entries keeps.

use http::StatusCode;

use super::*;
use crate::fingerprint::Fingerprint;
use crate::record::{RecordedBody, now_in_millis};

const TAG: Tag = Tag(7);

fn keys_of_claims(shard: &Shard) -> Vec<String> {
    let mut keys: Vec<_> = shard.claims(Moment::ZERO).iter().map(|entry| entry.key.key().into_owned()).collect();
    keys.sort();
    keys
}

#[test]
fn claims_of_one_tag_are_listed_once_each_until_they_end() {
    let fingerprint = Fingerprint::from_bytes([1; 32]);
    let (mut shard, request) = (Shard::default(), ClaimRequest::new(Token::unique(), fingerprint));
    let keys = ["a", "b", "c", "d"].map(|key| RecordKey::new("charges", None, key));
    for key in &keys {
        shard.insert(TAG, key, &request, Share::NONE, Moment::ZERO);
    }
    assert_eq!(keys_of_claims(&shard), ["a", "b", "c", "d"]);
    let body = RecordedBody::Whole("paid".into());
    let record = Record::new(StatusCode::CREATED, Vec::new(), body, fingerprint, now_in_millis());
    let later = Moment::from_secs(60);
    assert_eq!(shard.complete(TAG, &keys[0], request.token, &record, later, Moment::ZERO).0, Held::Yes);
    assert_eq!(keys_of_claims(&shard), ["b", "c", "d"]);
    assert!(shard.release(TAG, &keys[1], request.token, Moment::ZERO).is_some());
    assert_eq!(shard.renew(TAG, &keys[2], request.token, Duration::ZERO, Moment::ZERO), Held::Yes);
    let resolved = shard.resolve(TAG, &keys[2], request.token, &Resolution::executed(record, later), Moment::ZERO);
    assert_eq!(resolved.0, Resolved::Yes);
    assert_eq!(keys_of_claims(&shard), ["d"]);
    assert!(shard.remove(TAG, &keys[3]).is_some());
    assert!(shard.claims.is_empty(), "what has ended takes no room");
    shard.insert(TAG, &keys[3], &request, Share::NONE, Moment::ZERO);
    shard.remove_expired(request.ttl * 2, 10, |_| ());
    assert!(shard.claims.is_empty());
}

#[test]
fn shard_whose_last_entry_is_gone_keeps_nothing() {
    let (mut shard, request) = (Shard::default(), ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32])));
    let key = RecordKey::new("charges", None, "a");
    shard.insert(TAG, &key, &request, Share::NONE, Moment::ZERO);
    assert!(shard.next_expiry().is_some());
    assert!(shard.release(TAG, &key, request.token, Moment::ZERO).is_some());
    assert_eq!(shard.remove_expired(Moment::ZERO, 10, |_| ()), 0);
    assert_eq!((shard.next_expiry(), shard.slots.capacity(), shard.expiries.capacity()), (None, 0, 0));
}
