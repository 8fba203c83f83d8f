//! A claim that was given back is kept out of PostgreSQL, whatever its statement had begun before.

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{AfterCrash, Claim, Held, PostgresStore, Store, StoreAdmin, Token};
use idempotent_tests::eventually;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::claim_request;

/// The claim's statement has read that nothing was given back, and pauses before it writes.
#[tokio::test]
async fn claim_given_back_in_its_statement_is_kept_out() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    PostgresStore::new(pool.clone()).migrate().await.expect("the tables are made");
    let stand_still = "CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_lock(43); PERFORM pg_advisory_unlock(43); RETURN NEW; END';
        CREATE TRIGGER stand_still BEFORE INSERT ON idempotency.records FOR EACH ROW
        WHEN (NEW.state = 'claimed') EXECUTE FUNCTION stand_still();";
    sqlx::raw_sql(stand_still).execute(&pool).await.expect("the trigger is made");
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 43 \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let waiting = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.expect("the server answers");
    for level in ["read committed", "repeatable read", "serializable"] {
        let store = PostgresStore::new(database.pool_of_isolation(level).await);
        let (key, late) =
            (RecordKey::new("charges", None, level), claim_request().with_after_crash(AfterCrash::Reject));
        let mut holder = pool.acquire().await.expect("a connection");
        sqlx::query("SELECT pg_advisory_lock(43)").execute(&mut *holder).await.expect("the lock is free");
        let arriving = tokio::spawn({
            let (store, key) = (store.clone(), key.clone());
            async move { store.claim(&key, late).await }
        });
        eventually(&waiting, |&waiting| waiting == 1).await;
        assert_eq!(store.release(&key, late.token).await.expect("the store answers"), Held::No, "{level}");
        sqlx::query("SELECT pg_advisory_unlock(43)").execute(&mut *holder).await.expect("the lock is held");
        let arrived = arriving.await.expect("the task runs");
        assert!(arrived.is_err(), "{level}: {arrived:?}");
        assert_eq!(store.get(&key).await.expect("the store answers"), None, "{level}");
        assert_eq!(
            store.claim(&key, claim_request().with_after_crash(AfterCrash::Reject)).await.expect("the store claims"),
            Claim::Acquired { attempt: 1 }
        );
        assert_eq!(store.list(None, 10).await.expect("the store lists").damaged.len(), 0, "{level}");
    }
}

#[tokio::test]
async fn tables_of_the_first_version_are_migrated_with_their_rows() {
    const FIRST: &str = include_str!("../../../../idempotent-runtime/src/store/postgres/migrations/1.sql");

    let pool = PostgresServer::shared().await.database().await.pool(2).await;
    sqlx::raw_sql(FIRST).execute(&pool).await.expect("the tables are made");
    let store = PostgresStore::new(pool.clone());
    let (key, kept, late) = (
        RecordKey::new("charges", None, "k"),
        claim_request().with_after_crash(AfterCrash::Reject),
        claim_request().with_after_crash(AfterCrash::Reject),
    );
    let error = store.claim(&key, kept).await.expect_err("the tables are too old");
    let reason = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(reason.contains("an older version: call `PostgresStore::migrate`"), "{reason}");
    // As the first version wrote them.
    let insert = "INSERT INTO idempotency.records \
         (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, expires_at) VALUES \
         (sha256(convert_to($1, 'UTF8')), $1, 'claimed', $2, $3, 1, 120000, now() + interval '1 hour', 'infinity'), \
         (sha256(convert_to($1, 'UTF8')) || decode($4, 'hex'), '', 'given back', '', $4, 0, 0, NULL, now() + interval '1 day')";
    let text = |token: Token| format!("{:032x}", token.as_u128());
    let insert = sqlx::query(insert).bind(key.as_str()).bind(kept.fingerprint.to_string());
    insert.bind(text(kept.token)).bind(text(late.token)).execute(&pool).await.expect("the rows are written");
    store.migrate().await.expect("the tables are migrated");
    let arrived = store.claim(&key, late).await.expect("the store answers");
    assert_eq!(arrived, Claim::InFlight { fingerprint: kept.fingerprint });
    assert_eq!(store.release(&key, kept.token).await.expect("the store answers"), Held::Yes);
    assert!(store.claim(&key, late).await.is_err(), "it was given back");
    let guarded = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM idempotency.records WHERE guards_token");
    assert_eq!(guarded.fetch_one(&pool).await.expect("the server answers"), 1);
}
