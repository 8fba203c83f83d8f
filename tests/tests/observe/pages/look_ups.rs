//! The commands of the runbook that look up a key find it.

use std::process::Command;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{Held, PostgresStore, RedisStore, SqliteStore, Store, StoreAdmin};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::{SqliteFile, acquire, record};
use sqlx::{AssertSqlSafe, Executor as _, Row};

use super::read;

fn key() -> RecordKey {
    RecordKey::new("charges", Some("acct/7"), "8e03978e")
}

/// The code blocks of the section, in order.
fn blocks(section: &str) -> Vec<String> {
    let page = read("runbook.md");
    let section = page.split_once(&format!("\n### {section}\n")).expect("the section is there").1;
    let section = section.split("\n##").next().unwrap_or_default();
    section.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("code").1.to_owned()).collect()
}

async fn fill(store: &impl StoreAdmin) {
    let token = acquire(store, &key()).await;
    let ttl = std::time::Duration::from_hours(24);
    let _ = store.complete(&key(), token, record("paid"), ttl).await.expect("the store answers");
}

#[tokio::test]
async fn in_sqlite() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the file can be opened");
    fill(&store).await;
    let [line, claims] = blocks("SQLite").try_into().expect("two blocks");
    let statement = |line: &str| line.split('"').nth(1).expect("the statement is quoted").to_owned();
    let row = sqlx::query(AssertSqlSafe(statement(&line))).fetch_one(&mut file.connect().await).await;
    let row = row.expect("it is found");
    assert_eq!((row.get::<&str, _>("state"), row.get::<i64, _>("status")), ("completed", 201));

    let runs = RecordKey::new("charges", None, "runs");
    let token = acquire(&store, &runs).await;
    let renewed = store.renew(&runs, token, std::time::Duration::from_hours(24)).await.expect("the store answers");
    assert_eq!(renewed, Held::Yes);
    let claims = statement(&claims).replace("idempotency.db-leases", &file.leases().display().to_string());
    let (attach, claims) = claims.split_once(';').expect("two statements");
    let mut connection = file.connect().await;
    connection.execute(AssertSqlSafe(attach.to_owned())).await.expect("it is SQL");
    let row = sqlx::query(AssertSqlSafe(claims.to_owned())).fetch_one(&mut connection).await.expect("it is found");
    assert_eq!(row.get::<&str, _>("key"), runs.as_str());
    let is_renewed = sqlx::query_scalar("SELECT ?1 > datetime('now', '+23 hours')");
    let lease_until: String = row.get("lease_until");
    let is_renewed: bool = is_renewed.bind(&lease_until).fetch_one(&mut connection).await.expect("it is SQL");
    assert!(is_renewed, "{lease_until}");
}

#[tokio::test]
async fn in_postgresql() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(2).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    fill(&store).await;
    let [statement, claims] = blocks("PostgreSQL").try_into().expect("two blocks");
    let row = sqlx::query(AssertSqlSafe(statement)).fetch_one(&pool).await.expect("it is found");
    assert_eq!((row.get::<&str, _>("state"), row.get::<i32, _>("status")), ("completed", 201));
    acquire(&store, &RecordKey::new("charges", None, "runs")).await;
    let claims = sqlx::query(AssertSqlSafe(claims)).fetch_all(&pool).await.expect("it is SQL");
    assert_eq!(claims.iter().map(|row| row.get::<&str, _>("key")).collect::<Vec<_>>(), ["charges//runs"]);
}

#[tokio::test]
async fn in_redis() {
    let redis = RedisServer::start(&[]).await;
    fill(&RedisStore::connect(&redis.url()).await.expect("the server answers")).await;
    let [lines] = blocks("Redis").try_into().expect("one block");
    let mut answers = Vec::new();
    for line in lines.lines() {
        let words =
            line.strip_prefix("$ redis-cli ").expect("a line of redis-cli").split(" #").next().unwrap_or_default();
        let port = redis.address().rsplit_once(':').expect("a port").1.to_owned();
        let command = format!("redis-cli -p {port} {words}");
        let output = Command::new("sh").args(["-c", &command]).output().expect("sh starts");
        answers.push(String::from_utf8(output.stdout).expect("the answer is text"));
    }
    let [value, left, names] = answers.try_into().expect("three lines");
    assert!(value.starts_with(r#"{"state":"completed""#), "{value}");
    assert!(left.trim().parse::<u64>().is_ok_and(|millis| millis > 0), "{left}");
    assert_eq!(names.trim(), "idempotency:charges/@acct%2F7/8e03978e");
}

#[test]
fn where_keys_are_digested() {
    let [lines] = blocks("Where keys are digested").try_into().expect("one block");
    let script: Vec<&str> = lines.lines().map(|line| line.trim_start_matches("$ ")).collect();
    let output = Command::new("sh").args(["-c", &script.join("\n")]).output().expect("sh starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), key().digested().as_str());
}
