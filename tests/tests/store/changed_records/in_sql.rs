//! Changes of the rows in SQLite and PostgreSQL.

use std::any::Any;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{PostgresStore, SqliteStore};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::stores::migrated;
use sqlx::{AssertSqlSafe, PgPool, Row as _, SqliteConnection};
use tokio::sync::Mutex;

use super::{Original, Stored, with_each_byte_changed};

/// A column, and the expression that replaces its value.
pub(super) type Change = (&'static str, String);

/// The columns of both databases that contain text.
const TEXTS: [&str; 4] = ["state", "fingerprint", "token", "headers"];

/// The columns of both databases that contain a number, or a duration as a number.
const NUMBERS: [&str; 3] = ["attempt", "claim_ttl", "status"];

fn texts(column: &'static str, original: &str) -> Vec<Change> {
    let others = ["", "claimed", "completed", "given back", "transaction", "[]", "\"sealed\"", "{}", "null"];
    let planted = r#"[["location","https://evil.example"]]"#;
    let of_connection =
        r#"[["content-length","3"],["transfer-encoding","chunked"],["connection","close"],["set-cookie","a=b"]]"#;
    let too_many: Vec<_> = (0..40_000).map(|number| [format!("x-{number}"), String::new()]).collect();
    let too_many = serde_json::to_string(&too_many).expect("texts");
    let others = others.into_iter().chain([planted, of_connection, &too_many]).map(str::to_owned);
    let bytes = with_each_byte_changed(original.as_bytes()).map(|bytes| String::from_utf8(bytes).expect("ASCII"));
    others.chain(bytes).map(|text| (column, format!("'{}'", text.replace('\'', "''")))).collect()
}

fn numbers(column: &'static str) -> Vec<Change> {
    let numbers = [-1, 0, 1, 99, 100, 101, 200, 204, 205, 304, 599, 999, 1000, i64::from(i32::MAX)];
    numbers.into_iter().map(|number| (column, number.to_string())).chain([(column, "NULL".to_owned())]).collect()
}

/// Returns the changes of the body. `form` makes an SQL expression of hexadecimal digits.
fn bodies(original: Option<&[u8]>, form: impl Fn(&str) -> String) -> Vec<Change> {
    let changed = with_each_byte_changed(original.unwrap_or_default());
    let others = [Vec::new(), b"PAID 1000000 EUR".to_vec(), vec![0xff; 200]];
    let bytes = changed.chain(others).map(|bytes| ("body", form(&hex::encode(bytes))));
    bytes.chain([("body", "NULL".to_owned())]).collect()
}

/// The rows in the table of one of the two databases.
pub(super) struct Rows<C> {
    connection: C,
    original: Original<String>,
    /// The file or the database, which must live as long as the connection.
    _place: Box<dyn Any>,
}

pub(super) async fn sqlite() -> (SqliteStore, Rows<Mutex<SqliteConnection>>) {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let mut connection = file.connect().await;
    sqlx::query("PRAGMA synchronous = OFF").execute(&mut connection).await.expect("a pragma");
    let rows = Rows { connection: Mutex::new(connection), original: Original::default(), _place: Box::new(file) };
    (store, rows)
}

pub(super) async fn postgres() -> (PostgresStore, Rows<PgPool>) {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    let store = migrated(&pool).await;
    (store, Rows { connection: pool, original: Original::default(), _place: Box::new(database) })
}

impl Stored for &Rows<Mutex<SqliteConnection>> {
    type Change = Change;

    async fn changes(&self, key: &RecordKey) -> Vec<Change> {
        let copy = format!(
            "DROP TABLE IF EXISTS temp.original; \
             CREATE TEMP TABLE original AS SELECT * FROM main.idempotency_records WHERE key = '{}'",
            key.as_str()
        );
        let mut connection = self.connection.lock().await;
        sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut *connection).await.expect("it is copied");
        let row =
            sqlx::query("SELECT * FROM temp.original").fetch_one(&mut *connection).await.expect("the row is there");
        let times = ["lease_id", "clock", "renewals", "lease", "lease_until", "recorded_at"];
        let numbers = NUMBERS.into_iter().chain(times).flat_map(numbers);
        let ends = [("recorded_at", i64::MIN.to_string()), ("recorded_at", i64::MAX.to_string())];
        let later = [("expires_at", i64::MAX.to_string()), ("expires_at", "expires_at + 1000".to_owned())];
        let texts = TEXTS.into_iter().flat_map(|column| texts(column, row.get(column)));
        texts
            .chain(numbers)
            .chain(ends)
            .chain(later)
            .chain(bodies(row.get("body"), |hex| format!("x'{hex}'")))
            .collect()
    }

    async fn change(&self, key: &RecordKey, (column, value): &Change) {
        let update = format!("UPDATE idempotency_records SET {column} = {value} WHERE key = '{}'", key.as_str());
        let mut connection = self.connection.lock().await;
        // The database rejects a value that the column cannot have.
        let _ = sqlx::query(AssertSqlSafe(update)).execute(&mut *connection).await;
    }

    async fn restore(&self, _: &RecordKey) {
        let mut connection = self.connection.lock().await;
        let restore = "INSERT OR REPLACE INTO main.idempotency_records SELECT * FROM temp.original";
        sqlx::query(restore).execute(&mut *connection).await.expect("it is restored");
    }
}

impl Stored for &Rows<PgPool> {
    type Change = Change;

    async fn changes(&self, key: &RecordKey) -> Vec<Change> {
        let select = "SELECT headers::text AS headers, state, fingerprint, token, body, row_to_json(r)::text AS whole \
                      FROM idempotency.records AS r WHERE key = $1";
        let row = sqlx::query(select).bind(key.as_str()).fetch_one(&self.connection).await.expect("the row is there");
        self.original.set(row.get("whole"));
        let flags = ["awaited", "guards_token", "lingers"].map(|column| (column, format!("NOT {column}")));
        let times = ["lease_until", "recorded_at", "delete_after"].into_iter().flat_map(|column| {
            ["NULL", "'-infinity'", "'infinity'", "'4000-01-01 BC'", "now()"].map(|time| (column, time.to_owned()))
        });
        let later = [("expires_at", "'infinity'".to_owned()), ("expires_at", "expires_at + interval '1 s'".to_owned())];
        let keys = [("key", "'changed-records//other'".to_owned()), ("key", "''".to_owned())];
        let texts = TEXTS.into_iter().flat_map(|column| texts(column, row.get(column)));
        let numbers = NUMBERS.into_iter().flat_map(numbers);
        let bodies = bodies(row.get("body"), |hex| format!("decode('{hex}', 'hex')"));
        texts.chain(numbers).chain(flags).chain(times).chain(later).chain(keys).chain(bodies).collect()
    }

    async fn change(&self, key: &RecordKey, (column, value): &Change) {
        let update = format!("UPDATE idempotency.records SET {column} = {value} WHERE key = '{}'", key.as_str());
        // The database rejects a value that the column cannot have.
        let _ = sqlx::query(AssertSqlSafe(update)).execute(&self.connection).await;
    }

    async fn restore(&self, key: &RecordKey) {
        let digest = "digest = sha256($1::text::bytea)";
        let restore = format!(
            "WITH original AS (SELECT * FROM json_populate_record(NULL::idempotency.records, $2::text::json)) \
             UPDATE idempotency.records AS r SET (key, state, fingerprint, token, attempt, claim_ttl, awaited, lease_until, \
             expires_at, recorded_at, status, headers, body, delete_after, guards_token, lingers) = \
             (SELECT key, state, fingerprint, token, attempt, claim_ttl, awaited, lease_until, expires_at, recorded_at, status, \
             headers, body, delete_after, guards_token, lingers FROM original) WHERE {digest}"
        );
        let restored = sqlx::query(AssertSqlSafe(restore)).bind(key.as_str()).bind(self.original.get());
        let restored = restored.execute(&self.connection).await.expect("it is restored");
        assert_eq!(restored.rows_affected(), 1);
    }
}
