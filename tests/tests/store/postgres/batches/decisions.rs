//! A claim in a batch is decided as one in a statement of its own.

use std::time::Duration;

use futures_util::future::join_all;
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, PostgresStore, Store, StoreAdmin};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{claim_request, migrated, record};
use sqlx::PgPool;

use super::{answers, count, execute, is_first_attempt, key};

fn of_other_request() -> Fingerprint {
    Fingerprint::from_bytes([2; 32])
}

/// What a key can have when a claim comes.
const STATES: [&str; 12] = [
    "absent",
    "claimed",
    "claimed by another request",
    "claimed by this token",
    "lapsed",
    "lapsed under another request",
    "lapsed under a former secret",
    "lapsed and never to run again",
    "expired claim",
    "record",
    "expired record",
    "token given back",
];

/// Brings a key into this state, and returns the next claim of it.
async fn prepare(store: &PostgresStore, pool: &PgPool, state: &str, key: &RecordKey) -> ClaimRequest {
    let (holder, next) = (claim_request(), claim_request());
    if state == "token given back" {
        assert_eq!(store.release(key, next.token).await.expect("it releases"), Held::No);
        return next;
    }
    if state == "absent" {
        return next;
    }
    assert!(is_first_attempt(&store.claim(key, holder).await));
    if state.starts_with("lapsed") {
        assert_eq!(store.renew(key, holder.token, Duration::ZERO).await.expect("it renews"), Held::Yes);
    }
    if state.ends_with("record") {
        let completed = store.complete(key, holder.token, record("paid"), holder.ttl).await;
        assert_eq!(completed.expect("it records"), Held::Yes);
    }
    if state.starts_with("expired") {
        let expire = "UPDATE idempotency.records SET expires_at = clock_timestamp(), delete_after = clock_timestamp() \
             WHERE key = $1";
        let expired = sqlx::query(expire).bind(key.as_str()).execute(pool).await.expect("it is updated");
        assert_eq!(expired.rows_affected(), 1);
    }
    match state {
        "claimed by this token" => holder,
        "claimed by another request" | "lapsed under another request" => next.with_fingerprint(of_other_request()),
        "lapsed under a former secret" => {
            next.with_fingerprint(of_other_request()).with_former_fingerprint(holder.fingerprint)
        }
        "lapsed and never to run again" => next.with_after_crash(AfterCrash::Reject),
        _ => next,
    }
}

/// The entry as operators see it, without what differs from key to key.
async fn fingerprint(store: &PostgresStore, key: &RecordKey) -> Option<Fingerprint> {
    store.get(key).await.expect("it can be read").map(|entry| entry.fingerprint)
}

#[tokio::test]
async fn batched_claims_are_decided_as_single_ones() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let mut single = Vec::new();
    for state in STATES {
        let key = key(state, 0);
        let next = prepare(&store, &pool, state, &key).await;
        let claim = format!("{:?}", store.claim(&key, next).await);
        single.push((claim, fingerprint(&store, &key).await));
    }
    let keys: Vec<_> = (1..=4).flat_map(|copy| STATES.map(|state| (state, key(state, copy)))).collect();
    let mut requests = Vec::new();
    for (state, key) in &keys {
        requests.push(prepare(&store, &pool, state, key).await);
    }
    let claims = join_all(keys.iter().zip(&requests).map(|((_, key), next)| store.claim(key, *next))).await;
    for (((state, key), claim), expected) in keys.iter().zip(&claims).zip(single.iter().cycle()) {
        assert_eq!((format!("{claim:?}"), fingerprint(&store, key).await), *expected, "{state}");
    }
}

/// One claim of each key, and the others of one burst learn that it is in flight.
#[tokio::test]
async fn claims_of_one_key_in_a_burst_get_it_once() {
    let store = migrated(&PostgresServer::shared().await.database().await.pool(4).await).await;
    let keys: Vec<_> = (0..100).map(|n| key("burst", n % 10)).collect();
    let claims = join_all(keys.iter().map(|key| store.claim(key, claim_request()))).await;
    for name in 0..10 {
        let of_key = || (0..100).filter(|n| n % 10 == name).map(|n| &claims[n]);
        let acquired = of_key().filter(|claim| is_first_attempt(claim)).count();
        let in_flight = of_key().filter(|claim| matches!(claim, Ok(Claim::InFlight { .. }))).count();
        assert_eq!((acquired, in_flight), (1, 9));
    }
}

/// Each key has an expired lease. Only its own request takes it over, whatever claims of it are in one burst.
#[tokio::test]
async fn burst_of_two_requests_for_a_key_gives_it_to_its_own() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let keys: Vec<_> = (0..20).map(|n| key("two-requests", n)).collect();
    for key in &keys {
        prepare(&store, &pool, "lapsed", key).await;
    }
    let others = || (0..40).map(|n| (n % 20, claim_request().with_fingerprint(of_other_request())));
    let own = (0..20).map(|n| (n, claim_request()));
    let burst: Vec<_> = others().chain(own).chain(others()).collect();
    let claims = join_all(burst.iter().map(|&(n, request)| store.claim(&keys[n], request))).await;
    for ((_, request), claim) in burst.iter().zip(&claims) {
        match claim {
            Ok(Claim::Acquired { attempt: 2 }) => assert_eq!(request.fingerprint, claim_request().fingerprint),
            Ok(Claim::Lapsed { fingerprint } | Claim::InFlight { fingerprint }) => {
                assert_eq!((*fingerprint, request.fingerprint), (claim_request().fingerprint, of_other_request()));
            }
            claim => panic!("{claim:?}"),
        }
    }
}

/// Two stores, as two processes have them, send the same operations at once, in reverse orders. Each row takes a moment, and the
/// server looks for a deadlock much sooner than a statement of the store gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_in_reverse_orders_do_not_deadlock() {
    const KEYS: usize = 34;
    let server = PostgresServer::start(&["deadlock_timeout=5ms"]).await;
    let database = server.database().await;
    let pool = database.pool(1).await;
    migrated(&pool).await;
    let slow_down = "CREATE FUNCTION take_a_moment() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(0.001); RETURN coalesce(NEW, OLD); END';
        CREATE TRIGGER take_a_moment BEFORE INSERT OR UPDATE OR DELETE ON idempotency.records FOR EACH ROW
        EXECUTE FUNCTION take_a_moment();";
    execute(&pool, slow_down).await;
    let stores = [PostgresStore::new(database.pool(4).await), PostgresStore::new(database.pool(4).await)];
    for round in 0..10 {
        let name = format!("reverse{round}-");
        let requests: Vec<_> = (0..KEYS).map(|n| (key(&name, n), claim_request())).collect();
        let reversed: Vec<_> = requests.iter().rev().cloned().collect();
        let claim = |store: &PostgresStore, requests: &[(RecordKey, ClaimRequest)]| {
            let claim = |(key, request): (RecordKey, ClaimRequest)| {
                let store = store.clone();
                tokio::spawn(async move { store.claim(&key, request).await })
            };
            answers(requests.iter().cloned().map(claim).collect())
        };
        let claims = tokio::join!(claim(&stores[0], &requests), claim(&stores[1], &reversed));
        assert!(claims.0.iter().chain(&claims.1).all(is_first_attempt), "they have the same tokens: {claims:?}");
        let end = |store: &PostgresStore, requests: &[(RecordKey, ClaimRequest)]| {
            let end = |(key, ClaimRequest { token, ttl, .. }): (RecordKey, ClaimRequest)| {
                let store = store.clone();
                tokio::spawn(async move {
                    if round % 2 == 0 {
                        store.complete(&key, token, record("paid"), ttl).await
                    } else {
                        store.release(&key, token).await
                    }
                })
            };
            answers(requests.iter().cloned().map(end).collect())
        };
        let ends = tokio::join!(end(&stores[0], &requests), end(&stores[1], &reversed));
        assert!(ends.0.iter().chain(&ends.1).all(Result::is_ok), "{ends:?}");
    }
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(count(&pool, deadlocks).await, 0);
}
