//! Changes of the values in Redis.

use std::ops::Range;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::RedisStore;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::stores;
use redis::aio::MultiplexedConnection;
use serde::de::IgnoredAny;
use serde_json::json;

use super::{Original, Stored, with_each_byte_changed};

pub(super) async fn store() -> (RedisStore, String) {
    let prefix = stores::prefix();
    let store = RedisStore::builder(&RedisServer::shared().await.url()).prefix(prefix.clone()).open().await;
    (store.expect("the store opens"), prefix)
}

/// The values whose names have one prefix.
pub(super) struct Values {
    prefix: String,
    connection: MultiplexedConnection,
    original: Original<Vec<u8>>,
}

impl Values {
    pub(super) async fn of(prefix: String) -> Self {
        let connection = RedisServer::shared().await.connection().await;
        Self { prefix, connection, original: Original::default() }
    }

    fn name(&self, key: &RecordKey) -> String {
        format!("{}{}", self.prefix, key.as_str())
    }

    async fn set(&self, key: &RecordKey, value: &[u8]) {
        let mut set = redis::cmd("SET");
        set.arg(self.name(key)).arg(value).arg("KEEPTTL");
        let () = set.exec_async(&mut self.connection.clone()).await.expect("the server answers");
    }
}

impl Stored for Values {
    type Change = String;

    async fn changes(&self, key: &RecordKey) -> Vec<String> {
        let mut get = redis::cmd("GET");
        let value: Vec<u8> =
            get.arg(self.name(key)).query_async(&mut self.connection.clone()).await.expect("the server answers");
        self.original.set(value.clone());
        let bytes = with_each_byte_changed(&value).map(|changed| String::from_utf8(changed).expect("ASCII"));
        let whole = str::from_utf8(&value).expect("the value is JSON");
        bytes.chain(with_each_member_changed(whole)).collect()
    }

    async fn change(&self, key: &RecordKey, change: &String) {
        self.set(key, change.as_bytes()).await;
    }

    async fn restore(&self, key: &RecordKey) {
        self.set(key, &self.original.get()).await;
    }
}

/// Returns the text without each of its members, and with other values of each member.
fn with_each_member_changed(whole: &str) -> Vec<String> {
    let others = [
        json!(null),
        json!(0),
        json!(4),
        json!(99),
        json!(101),
        json!(200),
        json!(204),
        json!(304),
        json!(1000),
        json!(""),
        json!("claimed"),
        json!("sealed"),
        json!([]),
        json!({}),
        json!([["location", "https://evil.example"]]),
        json!([
            ["content-length", "3"],
            ["transfer-encoding", "chunked"],
            ["connection", "close"],
            ["set-cookie", "a=b"]
        ]),
        json!((0..40_000).map(|number| [format!("x-{number}"), String::new()]).collect::<Vec<_>>()),
        json!("UEFJRCAxMDAwMDAwIEVVUg=="),
        json!("2020-01-01T00:00:00.000Z"),
    ];
    let members = [
        "state",
        "token",
        "body_bytes",
        "record",
        "version",
        "status",
        "headers",
        "body",
        "fingerprint",
        "recorded_at",
    ];
    let changed = |name: &str| {
        let member = member(whole, name);
        let with = |other: String| [&whole[..member.start], &other, &whole[member.end..]].concat();
        let others = others.iter().map(|other| with(format!("\"{name}\":{other}")));
        std::iter::once(with("\"x\":0".to_owned())).chain(others).collect::<Vec<_>>()
    };
    members.into_iter().flat_map(changed).collect()
}

/// Returns the range of the member in the text, with its name and its value.
fn member(whole: &str, name: &str) -> Range<usize> {
    let name = format!("\"{name}\":");
    let start = whole.find(&name).expect("each value has it");
    let value = start + name.len();
    let mut values = serde_json::Deserializer::from_str(&whole[value..]).into_iter::<IgnoredAny>();
    values.next().expect("a value").expect("the value is JSON");
    start..value + values.byte_offset()
}
