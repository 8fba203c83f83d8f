//! What a role needs to make the tables, and what to use them, and what the store says to one that has less.

use std::time::Duration;

use idempotent_runtime::Fingerprint;
use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, PostgresMigrateError, PostgresStore, Resolution, Resolved, Store,
    StoreAdmin, Token,
};
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::sqlite::{acquire, record};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

async fn store_of(database: &Database, role: &str) -> PostgresStore {
    let pool = PgPoolOptions::new().max_connections(3).connect_with(database.options_of(role)).await;
    PostgresStore::new(pool.expect("the server answers"))
}

async fn roles(administrator: &PgPool, prefix: &str) -> [String; 2] {
    let names = [format!("{prefix}_owner"), format!("{prefix}_service")];
    for name in &names {
        execute(administrator, &format!("DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN")).await;
    }
    names
}

async fn use_all(store: &PostgresStore) {
    let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_mins(2))
        .with_after_crash(AfterCrash::Reject);
    let key = RecordKey::new("charges", None, "k");
    assert_eq!(store.claim(&key, request).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.renew(&key, request.token, request.lease).await.expect("it renews"), Held::Yes);
    assert_eq!(store.release(&key, request.token).await.expect("it releases"), Held::Yes);
    assert_eq!(store.release(&key, request.token).await.expect("it gives back"), Held::No);
    assert_eq!(store.list(None, 10).await.expect("it lists").entries, []);
    assert!(store.unknown_outcomes().await.expect("it counts").is_empty());
    let _ = store.delete_expired().await.expect("it deletes");
    let _ = store.purge(&key).await.expect("it purges");
    for resolution in [Resolution::NotExecuted, Resolution::executed(record("paid"), request.ttl)] {
        let request = request.with_token(Token::unique()).with_lease(Duration::ZERO);
        assert_eq!(store.claim(&key, request).await.expect("it claims"), Claim::Acquired { attempt: 1 });
        let resolved = store.resolve(&key, request.token, resolution).await;
        assert_eq!(resolved.expect("it resolves"), Resolved::Yes);
    }
    assert!(store.purge(&key).await.expect("it purges"));
}

/// The documented `GRANT`s, and no other right.
#[tokio::test]
async fn granted_service_starts_and_does_all_its_work() {
    let database = PostgresServer::shared().await.database().await;
    let administrator = database.pool(1).await;
    let [_, service] = roles(&administrator, "granted").await;
    PostgresStore::new(administrator.clone()).migrate().await.expect("the tables are made");
    let store = store_of(&database, &service).await;
    for (grant, told) in [
        ("GRANT USAGE ON SCHEMA idempotency", "GRANT USAGE ON SCHEMA"),
        ("GRANT SELECT ON idempotency.schema_version", "GRANT SELECT ON \"idempotency\".schema_version"),
    ] {
        let error = store.migrate().await.expect_err("a right is missing");
        assert!(matches!(error, PostgresMigrateError::MissingRight { .. }), "{error:?}");
        assert!(error.to_string().contains(told) && error.to_string().contains(&service), "{error}");
        execute(&administrator, &format!("{grant} TO {service}")).await;
    }
    store.migrate().await.expect("there is nothing to do");
    let error = store.purge(&RecordKey::new("charges", None, "k")).await.expect_err("a right is missing");
    let reason = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(reason.contains("SELECT, INSERT, UPDATE and DELETE"), "{reason}");
    execute(&administrator, &format!("GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency.records TO {service}")).await;
    use_all(&store).await;
}

#[tokio::test]
async fn schema_that_exists_needs_no_right_on_the_database() {
    let database = PostgresServer::shared().await.database().await;
    let administrator = database.pool(1).await;
    let [owner, service] = roles(&administrator, "existing").await;
    let store = store_of(&database, &owner).await;
    let error = store.migrate().await.expect_err("it may not create a schema").to_string();
    assert!(error.contains(&format!("CREATE SCHEMA \"idempotency\" AUTHORIZATION {owner}")), "{error}");
    execute(&administrator, "CREATE SCHEMA idempotency").await;
    let error = store.migrate().await.expect_err("it may not use the schema").to_string();
    assert!(error.contains(&format!("GRANT USAGE, CREATE ON SCHEMA \"idempotency\" TO {owner}")), "{error}");
    execute(&administrator, &format!("GRANT USAGE, CREATE ON SCHEMA idempotency TO {owner}")).await;
    store.migrate().await.expect("the tables are made");
    use_all(&store).await;
    // A newer version of the library, for a role that does not own the tables.
    execute(&administrator, &format!("GRANT {owner} TO {service}")).await;
    execute(&administrator, "UPDATE idempotency.schema_version SET version = 2").await;
    execute(
        &administrator,
        &format!(
            "REVOKE {owner} FROM {service}; GRANT USAGE ON SCHEMA idempotency TO {service}; \
         GRANT SELECT ON idempotency.schema_version TO {service}"
        ),
    )
    .await;
    let error = store_of(&database, &service).await.migrate().await.expect_err("it may not migrate").to_string();
    assert!(error.contains("sql_since(2)"), "{error}");
}

#[tokio::test]
async fn the_sql_since_a_version_upgrades_its_tables() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(3).await;
    let store = PostgresStore::new(pool.clone());
    let (all, later) = (store.sql(), store.sql_since(1));
    execute(&pool, all.strip_suffix(&later).expect("the later part comes last")).await;
    execute(&pool, &later).await;
    use_all(&store).await;
    store.migrate().await.expect("nothing is left to do");
    assert_eq!(store.sql_since(4), "");
}

#[tokio::test]
async fn reader_finds_the_oldest_claim_on_its_last_page() {
    let database = PostgresServer::shared().await.database().await;
    let administrator = database.pool(2).await;
    let store = PostgresStore::new(administrator.clone());
    store.migrate().await.expect("the tables are made");
    for name in ["a", "b", "c"] {
        acquire(&store, &RecordKey::new("charges", None, name)).await;
    }
    // More than the store looks at where it can mark what stays.
    execute(
        &administrator,
        "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, delete_after) \
         SELECT sha256(n::text::bytea), 'charges//' || n, 'completed', '', '', 1, 1, now() + interval '1 hour', \
         now() + interval '1 hour' FROM generate_series(1, 100001) AS n",
    )
    .await;
    let [_, reader] = roles(&administrator, "claims").await;
    execute(&administrator, &format!("GRANT USAGE ON SCHEMA idempotency TO {reader}")).await;
    execute(&administrator, &format!("GRANT SELECT ON ALL TABLES IN SCHEMA idempotency TO {reader}")).await;
    let reader = store_of(&database, &reader).await;
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = reader.claims(cursor, 1).await.expect("it may read").expect("there is an index");
        found.extend(page.entries.into_iter().map(|entry| entry.key.key().into_owned()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, ["a", "b", "c"]);
}
