//! Which headers a replay repeats, and which headers it adds.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::routing::post;
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Server};

/// Header lines that belong to one exchange, one moment or one client.
const NOT_REPEATED: [(&str, &str); 18] = [
    ("www-authenticate", "Digest nonce=\"7ypf\""),
    ("authentication-info", "nextnonce=\"47364c\""),
    ("proxy-authenticate", "Basic"),
    ("proxy-authentication-info", "nextnonce=\"47364c\""),
    ("clear-site-data", "\"*\""),
    ("authorization", "Bearer s3cret"),
    ("x-authorization", "Bearer s3cret"),
    ("x-auth-token", "s3cret"),
    ("x-subject-token", "s3cret"),
    ("x-csrf-token", "s3cret"),
    ("x-accesstoken", "s3cret"),
    ("x-api-key", "s3cret"),
    ("mcp-session-id", "s3cret"),
    ("dpop-nonce", "once"),
    ("replay-nonce", "once"),
    ("set-cookie", "session=s3cret"),
    ("set-cookie2", "session=s3cret"),
    ("x-client-secret", "s3cret"),
];

/// Header lines whose names only look similar to those.
const REPEATED: [(&str, &str); 4] =
    [("x-token-count", "7"), ("x-announce", "soon"), ("x-nonces-left", "3"), ("location", "/charges/1")];

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let lines = lines.iter();
    lines.map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

#[idempotent(scope = "not-repeated")]
async fn not_repeated() -> (HeaderMap, &'static str) {
    (headers(&[&NOT_REPEATED[..], &REPEATED].concat()), "charged")
}

#[idempotent(
    scope = "kept-tokens",
    keep_headers = ["X-Auth-Token", "Clear-Site-Data", "WWW-Authenticate", "Set-Cookie2"]
)]
async fn kept() -> (HeaderMap, &'static str) {
    (headers(&NOT_REPEATED), "charged")
}

#[idempotent(scope = "says-nothing-of-caching")]
async fn says_nothing() -> &'static str {
    "charged"
}

#[idempotent(scope = "cacheable")]
async fn cacheable() -> (HeaderMap, &'static str) {
    (headers(&[("cache-control", "max-age=600")]), "charged")
}

#[idempotent(scope = "expires")]
async fn expires() -> (HeaderMap, &'static str) {
    (headers(&[("expires", "Tue, 15 Nov 1994 08:12:31 GMT")]), "charged")
}

#[idempotent(scope = "already-aged")]
async fn already_aged() -> (HeaderMap, &'static str) {
    (headers(&[("cdn-cache-control", "max-age=600"), ("age", "1000")]), "charged")
}

#[idempotent(scope = "drops-the-age", drop_headers = ["Age"])]
async fn drops_age() -> (HeaderMap, &'static str) {
    (headers(&[("cache-control", "max-age=600"), ("age", "1000")]), "charged")
}

#[idempotent(scope = "drops-cache-control", drop_headers = ["cache-control"])]
async fn drops_cache_control() -> (HeaderMap, &'static str) {
    (headers(&[("cache-control", "max-age=600")]), "charged")
}

/// A server, and the file with its records.
async fn serve() -> (Server, SqliteFile) {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let app = Router::new()
        .route("/not-repeated", post(not_repeated))
        .route("/kept", post(kept))
        .route("/nothing", post(says_nothing))
        .route("/cacheable", post(cacheable))
        .route("/expires", post(expires))
        .route("/aged", post(already_aged))
        .route("/no-age", post(drops_age))
        .route("/no-cache-control", post(drops_cache_control));
    (Server::start(app.layer(Registry::new(store).layer())).await, file)
}

async fn replay(server: &Server, path: &str) -> Answer {
    let replay = server.post_with_key(path, "k").await;
    assert_eq!((replay.is_replay(), replay.text()), (true, "charged"), "{path}");
    replay
}

#[tokio::test]
async fn replay_repeats_no_token_challenge_or_nonce() {
    let (server, file) = serve().await;
    let first = server.post_with_key("/not-repeated", "k").await;
    let replay = replay(&server, "/not-repeated").await;
    for (name, value) in NOT_REPEATED {
        assert_eq!(first.headers[name], value);
        assert_eq!(replay.headers.get(name), None, "{name}");
    }
    for (name, value) in REPEATED {
        assert_eq!(replay.headers[name], value);
    }
    let secrets = "SELECT count(*) FROM idempotency_records WHERE headers LIKE '%s3cret%' OR headers LIKE '%nonce=%'";
    assert_eq!(file.number(secrets).await, 0, "they are not even recorded");
}

#[tokio::test]
async fn keep_headers_repeats_what_it_names_and_no_more() {
    let (server, _file) = serve().await;
    server.post_with_key("/kept", "k").await;
    let replay = replay(&server, "/kept").await;
    let kept = ["www-authenticate", "clear-site-data", "x-auth-token", "set-cookie2"];
    for (name, value) in NOT_REPEATED {
        let expected = kept.contains(&name).then_some(value);
        assert_eq!(replay.headers.get(name).map(HeaderValue::as_bytes), expected.map(str::as_bytes), "{name}");
    }
}

#[tokio::test]
async fn lines_planted_in_a_record_are_not_replayed() {
    let (server, file) = serve().await;
    let planted = [
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("trailer", "x-checksum"),
        ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("retry-after", "120"),
        ("idempotency-recorded-trailer", "transfer-encoding: planted"),
        ("idempotency-recorded-by", "planted"),
        ("idempotency-recorded-by", "planted"),
        ("idempotent-replayed", "false"),
    ];
    for path in ["/not-repeated", "/kept"] {
        server.post_with_key(path, "k").await;
        let lines = serde_json::to_string(&[&NOT_REPEATED[..], &planted, &REPEATED].concat()).expect("it is JSON");
        file.execute(&format!("UPDATE idempotency_records SET headers = '{lines}'")).await;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nidempotency-key: k\r\nconnection: close\r\n\r\n",
            server.address()
        );
        let raw = server.raw(request.as_bytes()).await;
        let (head, body) = raw.split_once("\r\n\r\n").expect("a head");
        assert_eq!((body, head.matches("content-length: 7").count()), ("charged", 1), "{raw}");
        for text in ["content-length: 3", "chunked", "x-hop", "x-checksum", "1994", "retry-after", "planted", "false"] {
            assert!(!head.contains(text), "{text}: {raw}");
        }
        assert!(head.contains("location: /charges/1") && head.contains("idempotent-replayed: true"), "{raw}");
        for (name, value) in NOT_REPEATED {
            let is_kept = path == "/kept"
                && ["www-authenticate", "clear-site-data", "x-auth-token", "set-cookie2"].contains(&name);
            assert_eq!(head.contains(&format!("\n{name}: {value}")), is_kept, "{name}: {raw}");
        }
    }
}

/// The replay's `age` and `cache-control`, for a record that was made 100 seconds earlier.
async fn aged(path: &str) -> (Option<u64>, Option<String>) {
    let (server, file) = serve().await;
    let first = server.post_with_key(path, "k").await;
    file.execute("UPDATE idempotency_records SET recorded_at = recorded_at - 100000").await;
    let replay = replay(&server, path).await;
    assert_eq!(replay.headers.get("expires"), first.headers.get("expires"));
    assert!(replay.headers.get_all("age").iter().count() <= 1);
    let text = |name| replay.headers.get(name).map(|value: &HeaderValue| value.to_str().expect("ASCII").to_owned());
    (text("age").map(|age| age.parse().expect("seconds")), text("cache-control"))
}

#[tokio::test]
async fn replay_tells_its_age_or_forbids_to_store_it() {
    let max_age = Some("max-age=600".to_owned());
    for (path, age, cache_control) in [
        ("/nothing", None, Some("no-store".to_owned())),
        ("/cacheable", Some(100), max_age.clone()),
        ("/expires", Some(100), None),
        ("/aged", Some(1100), None),
        ("/no-age", None, max_age),
        ("/no-cache-control", None, None),
    ] {
        let (told, said) = aged(path).await;
        assert_eq!(said, cache_control, "{path}");
        let is_right = match (told, age) {
            (Some(told), Some(age)) => (age..age + 60).contains(&told),
            (told, age) => told == age,
        };
        assert!(is_right, "{path}: {told:?}");
    }
}

#[tokio::test]
async fn record_of_the_future_has_the_age_zero() {
    let (server, file) = serve().await;
    server.post_with_key("/cacheable", "k").await;
    file.execute("UPDATE idempotency_records SET recorded_at = recorded_at + 3600000").await;
    assert_eq!(replay(&server, "/cacheable").await.headers["age"], "0");
}
