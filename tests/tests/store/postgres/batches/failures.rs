//! What fails or holds up one operation of a batch does not fail or hold up the others, unless the answer is lost.

use std::str::FromStr;

use idempotent_runtime::store::{AfterCrash, Held, PostgresStore, Store, StoreError};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{migrated, record};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::{CALLERS, answers, claim_all, count, execute, is_first_attempt, key, requests};

/// A trigger rejects one row of many, and a constraint one record.
#[tokio::test]
async fn rejected_entry_fails_no_other_of_its_batch() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let reject = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'of the test' USING ERRCODE = '53100'; END $$;
         CREATE TRIGGER reject_claim BEFORE INSERT ON idempotency.records FOR EACH ROW
         WHEN (NEW.key LIKE '%poison7') EXECUTE FUNCTION reject();
         ALTER TABLE idempotency.records ADD CHECK (convert_from(body, 'UTF8') <> 'paid 9');";
    execute(&pool, reject).await;
    let requests = requests(AfterCrash::Reject);
    for (number, claim) in answers(claim_all(&store, "poison", &requests)).await.iter().enumerate() {
        match claim {
            Err(StoreError::Full) => assert_eq!(number, 7),
            claim => assert!(number != 7 && is_first_attempt(claim), "{number}: {claim:?}"),
        }
    }
    let complete = |n: usize| {
        let (store, key, request) = (store.clone(), key("poison", n), requests[n]);
        tokio::spawn(async move { store.complete(&key, request.token, record(format!("paid {n}")), request.ttl).await })
    };
    for (number, held) in answers((0..CALLERS).map(complete).collect()).await.iter().enumerate() {
        match held {
            Ok(Held::No) => assert_eq!(number, 7),
            Err(StoreError::RecordRejected(_)) => assert_eq!(number, 9),
            held => assert!(![7, 9].contains(&number) && matches!(held, Ok(Held::Yes)), "{number}: {held:?}"),
        }
    }
    assert_eq!(store.release(&key("poison", 9), requests[9].token).await.expect("it releases"), Held::Yes);
}

/// Another transaction has locked one row. The others of its batch do not wait for its end.
#[tokio::test]
async fn locked_row_holds_up_no_other_of_its_batch() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let requests = requests(AfterCrash::Rerun);
    assert!(answers(claim_all(&store, "locked", &requests)).await.iter().all(is_first_attempt));
    let mut holder = pool.begin().await.expect("a transaction");
    let lock = "SELECT FROM idempotency.records WHERE key LIKE '%locked3' FOR UPDATE";
    sqlx::query(lock).execute(&mut *holder).await.expect("the row is there");
    let complete = |n: usize| {
        let (store, key, request) = (store.clone(), key("locked", n), requests[n]);
        tokio::spawn(async move { store.complete(&key, request.token, record("paid"), request.ttl).await })
    };
    let mut completions: Vec<_> = (0..CALLERS).map(complete).collect();
    let locked = completions.remove(3);
    let others = answers(completions).await;
    assert!(others.iter().all(|held| matches!(held, Ok(Held::Yes))), "{others:?}");
    assert!(!locked.is_finished());
    holder.rollback().await.expect("it ends");
    assert_eq!(locked.await.expect("the task runs").expect("it records"), Held::Yes);
}

/// A pooler answers so when it has lost the server's connection: the batch may have been run, and no claim of it is sent again.
#[tokio::test]
async fn lost_connection_behind_a_pooler_sends_no_claim_again() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let lose = "CREATE SEQUENCE sent;
         CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM nextval('sent'); RAISE 'of the test' USING ERRCODE = '08006'; END $$;
         CREATE TRIGGER lose_claim BEFORE INSERT ON idempotency.records FOR EACH ROW
         WHEN (NEW.key LIKE '%behind7') EXECUTE FUNCTION lose();";
    execute(&pool, lose).await;
    let claims = answers(claim_all(&store, "behind", &requests(AfterCrash::Reject))).await;
    let unavailable = claims.iter().filter(|claim| matches!(claim, Err(StoreError::Unavailable(_)))).count();
    let acquired = claims.iter().filter(|claim| is_first_attempt(claim)).count();
    assert!(claims[7].is_err() && unavailable > 1 && unavailable + acquired == CALLERS, "{claims:?}");
    assert_eq!(count(&pool, "SELECT last_value FROM sent").await, 1);
}

/// The role has a `statement_timeout`, which one row exceeds. All of its batch fail with it, and are sent alone.
#[tokio::test]
async fn statement_timeout_of_a_batch_fails_only_its_slow_row() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(1).await;
    migrated(&pool).await;
    let sleep = "CREATE FUNCTION sleep_long() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
        CREATE TRIGGER sleep_long BEFORE INSERT ON idempotency.records FOR EACH ROW
        WHEN (NEW.key LIKE '%timeout7') EXECUTE FUNCTION sleep_long();";
    execute(&pool, sleep).await;
    let options = PgConnectOptions::from_str(&database.url()).expect("the URL is valid");
    let options = options.options([("statement_timeout", "1s")]);
    let limited = PgPoolOptions::new().max_connections(4).connect_with(options).await.expect("the server answers");
    let store = PostgresStore::new(limited);
    for (number, claim) in answers(claim_all(&store, "timeout", &requests(AfterCrash::Reject))).await.iter().enumerate()
    {
        match claim {
            Err(error) => assert!(number == 7 && !error.is_unreachable(), "{number}: {error:?}"),
            claim => assert!(number != 7 && is_first_attempt(claim), "{number}: {claim:?}"),
        }
    }
}

/// A pooler that has no connection of the server in time says so by an error of class 08. It lives, so nothing may run unguarded.
#[tokio::test]
async fn pooler_short_of_connections_fails_a_batch_as_busy() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let reject = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'query_wait_timeout' USING ERRCODE = '08P01'; END $$;
        CREATE TRIGGER reject_claim BEFORE INSERT ON idempotency.records FOR EACH ROW
        WHEN (NEW.key LIKE '%short7') EXECUTE FUNCTION reject();";
    execute(&pool, reject).await;
    let claims = answers(claim_all(&store, "short", &requests(AfterCrash::Rerun))).await;
    let errors: Vec<_> = claims.iter().filter_map(|claim| claim.as_ref().err()).collect();
    assert!(claims[7].is_err() && errors.len() > 1, "{claims:?}");
    assert!(errors.iter().all(|error| !error.is_unreachable()), "{errors:?}");
}
