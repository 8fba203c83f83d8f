//! What many or large operations at once do to a batch.

use idempotent_runtime::store::{AfterCrash, Claim, Held, PostgresStore, Store};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{claim_request, migrated, record};
use sqlx::PgPool;

use super::{CALLERS, answers, claim_all, count, execute, is_first_attempt, key, requests};

/// A body of this length for each key.
fn body(number: usize, length: usize) -> Vec<u8> {
    let mut body = number.to_string().into_bytes();
    body.resize(length, b' ');
    body
}

/// Claims all keys, completes them at once with bodies of this length, and reads the records back.
async fn record_bodies(store: &PostgresStore, name: &'static str, length: usize) {
    let requests = requests(AfterCrash::Rerun);
    assert!(answers(claim_all(store, name, &requests)).await.iter().all(is_first_attempt));
    let complete = |n: usize| {
        let (store, key, request) = (store.clone(), key(name, n), requests[n]);
        tokio::spawn(async move { store.complete(&key, request.token, record(body(n, length)), request.ttl).await })
    };
    let completed = answers((0..CALLERS).map(complete).collect()).await;
    assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
    for (n, replay) in answers(claim_all(store, name, &self::requests(AfterCrash::Rerun))).await.into_iter().enumerate()
    {
        let Ok(Claim::Completed(found)) = replay else { panic!("{replay:?}") };
        assert!(found.body == record(body(n, length)).body, "record {n}");
    }
}

/// The most records in one statement, and the most bytes of their bodies. Forgets the statements so far.
async fn largest(pool: &PgPool) -> (i64, i64) {
    let largest = "WITH noted AS (DELETE FROM sizes RETURNING *) \
         SELECT max(records), max(bytes) FROM noted";
    sqlx::query_as(largest).fetch_one(pool).await.expect("statements were noted")
}

#[tokio::test]
async fn statement_of_many_records_is_bounded_in_bytes() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let note = "CREATE TABLE sizes (records bigint, bytes bigint);
        CREATE FUNCTION note_size() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO sizes SELECT count(*), coalesce(sum(octet_length(body)), 0) FROM recorded; RETURN NULL; END';
        CREATE TRIGGER note_size AFTER UPDATE ON idempotency.records REFERENCING NEW TABLE AS recorded
        FOR EACH STATEMENT EXECUTE FUNCTION note_size();";
    execute(&pool, note).await;
    record_bodies(&store, "small", 100).await;
    assert!(largest(&pool).await.0 > 20, "they share statements");
    record_bodies(&store, "large", 60 << 10).await;
    let (records, bytes) = largest(&pool).await;
    assert!(records > 1 && bytes <= (1 << 20) + (64 << 10), "{records} records of {bytes} bytes");
    record_bodies(&store, "larger", 65 << 10).await;
    assert_eq!(largest(&pool).await, (1, 65 << 10));
}

/// Claims of one key that wait together share an answer: one is acquired, and the others cost no statements of their own.
#[tokio::test]
async fn flood_of_one_key_is_answered_by_few_statements() {
    const FLOOD: usize = 1000;
    let server = PostgresServer::start(&["shared_preload_libraries=pg_stat_statements"]).await;
    let pool = server.database().await.pool(4).await;
    execute(&pool, "CREATE EXTENSION pg_stat_statements").await;
    let store = migrated(&pool).await;
    let claims = |name: &'static str, count: usize| -> Vec<_> {
        let claim = |_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(&key(name, 0), claim_request()).await })
        };
        (0..count).map(claim).collect()
    };
    let statements =
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE '%idempotency.records%'";
    let flood = claims("flood", FLOOD);
    let others = answers(claim_all(&store, "others", &requests(AfterCrash::Rerun))).await;
    assert!(others.iter().all(is_first_attempt), "{others:?}");
    let flood = answers(flood).await;
    let acquired = flood.iter().filter(|claim| is_first_attempt(claim)).count();
    let in_flight = flood.iter().filter(|claim| matches!(claim, Ok(Claim::InFlight { .. }))).count();
    assert_eq!((acquired, in_flight), (1, FLOOD - 1));
    let took = count(&pool, statements).await;
    assert!(took < 200, "{took} statements for {} claims", FLOOD + CALLERS);
    let (request, paid) = (claim_request(), record("paid"));
    assert!(is_first_attempt(&store.claim(&key("recorded", 0), request).await));
    let completed = store.complete(&key("recorded", 0), request.token, paid.clone(), request.ttl).await;
    assert_eq!(completed.expect("it records"), Held::Yes);
    let replays = answers(claims("recorded", FLOOD)).await;
    assert!(replays.iter().all(|claim| matches!(claim, Ok(Claim::Completed(found)) if found.body == paid.body)));
}
