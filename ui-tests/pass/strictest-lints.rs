//! A crate that forbids and denies as many lints as possible.

#![forbid(unsafe_code)]
#![deny(missing_docs, warnings, unused, nonstandard_style, rust_2018_idioms, unused_qualifications, unreachable_pub)]

/// Charges.
pub mod charges {
    use axum::extract::{Path, State};
    use axum::http::StatusCode;
    use idempotent_runtime::idempotent;

    /// With every argument, in the order of the table of arguments.
    ///
    /// # Errors
    ///
    /// If the order is empty.
    #[idempotent(
        scope = "charges",
        ttl = "1h30m",
        cache = [201, 409, 200..=299, 400..500, "5xx"],
        header = "X-Request-Id",
        required,
        invalid_key = "ignore",
        min_key_length = 16,
        key_format = "uuid",
        methods = [POST, PATCH],
        caller = id,
        fingerprint = (&id, body.len()),
        in_flight = wait("5s"),
        lease = "30s",
        after_crash = "reject",
        stream = "pass",
        max_body = "1MiB",
        oversize = "rerun",
        keep_headers = ["set-cookie"],
        drop_headers = ["x-trace"],
        store = "payments",
        on_store_error = "run",
        crate = "::idempotent_runtime",
    )]
    pub async fn create(State(()): State<()>, Path(id): Path<u64>, mut body: String) -> Result<String, StatusCode> {
        if body.is_empty() {
            return Err(StatusCode::BAD_REQUEST);
        }
        body.push_str(&id.to_string());
        Ok(body)
    }

    /// With the words of the default values.
    #[idempotent(
        cache = all,
        key = token,
        required = false,
        invalid_key = "reject",
        min_key_length = 1,
        key_format = "any",
        methods = any,
        fingerprint = none,
        in_flight = reject,
        after_crash = "rerun",
        oversize = "reject",
        on_store_error = "reject",
    )]
    #[must_use]
    #[inline]
    pub async fn update(token: String) -> String {
        token
    }

    /// A short ttl also shortens the default lease.
    #[idempotent(ttl = "2s", cache = "2xx", max_body = "10 kB")]
    pub async fn remove() {}
}

fn main() {
    let policy = |name: &str| idempotent_runtime::policies().find(|policy| policy.handler().ends_with(name)).unwrap();
    let create = policy("create");
    assert_eq!(create.ttl().as_secs(), 5400);
    assert_eq!(create.header(), "x-request-id");
    assert_eq!(create.max_body(), 1024 * 1024);
    assert!(create.required() && create.has_caller());
    assert!(!policy("update").required());
    assert!(policy("update").scope().ends_with("::charges::update"));
    assert_eq!(policy("remove").lease().as_secs(), 2);
    assert_eq!(policy("remove").max_body(), 10_000);
}
