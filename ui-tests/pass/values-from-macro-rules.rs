//! A `macro_rules!` puts values that it passes on into invisible groups.

#![deny(warnings)]

use idempotent_runtime::{AfterCrash, Cache, FingerprintSource, InFlight, Methods, idempotent};

macro_rules! handler {
    ($name:ident: $ttl:expr, $status:expr, $end:literal, $methods:expr, $wait:expr, $crash:expr, $keep:expr, $required:expr, $print:expr, $caller:expr) => {
        #[idempotent(
            ttl = $ttl,
            cache = [$status, 400..=$end],
            methods = $methods,
            in_flight = $wait,
            after_crash = $crash,
            keep_headers = [$keep],
            required = $required,
            fingerprint = $print,
            caller = $caller,
        )]
        #[allow(dead_code)]
        async fn $name(body: String) -> String {
            body
        }
    };
}

macro_rules! statuses {
    ($name:ident: $cache:expr, $method:expr, $limit:expr) => {
        #[idempotent(cache = $cache, methods = [$method], in_flight = wait($limit))]
        #[allow(dead_code)]
        async fn $name() {}
    };
}

handler!(create: "1h", 201, 409, [POST], wait("5s"), "reject", "set-cookie", true, none, 1 + 1);
statuses!(update: all, PATCH, "1s");

macro_rules! fingerprint {
    ($name:ident: $print:expr) => {
        #[idempotent(fingerprint = $print)]
        #[allow(dead_code)]
        async fn $name(_body: String) {}
    };
}

fingerprint!(canonical: json);
fingerprint!(alone: only((1, "two")));
fingerprint!(with_target: Some(0.5));

fn main() {
    let policy = |name: &str| idempotent_runtime::policies().find(|policy| policy.handler().ends_with(name)).unwrap();
    let create = policy("::create");
    assert_eq!(create.ttl().as_secs(), 3600);
    assert_eq!(create.cache(), Cache::Statuses(&[(201, 201), (400, 409)]));
    assert!(matches!(create.methods(), Methods::Only(names) if names == ["POST"]));
    assert!(matches!(create.in_flight(), InFlight::Wait(limit) if limit.as_secs() == 5));
    assert_eq!(create.after_crash(), AfterCrash::Reject);
    assert_eq!(create.keep_headers(), ["set-cookie"]);
    assert!(create.required() && create.has_caller());
    assert_eq!(create.fingerprint(), FingerprintSource::None);
    assert_eq!(policy("::canonical").fingerprint(), FingerprintSource::Json);
    assert_eq!(policy("::alone").fingerprint(), FingerprintSource::Only);
    assert_eq!(policy("::with_target").fingerprint(), FingerprintSource::Expression);
    let update = policy("::update");
    assert_eq!(update.cache(), Cache::All);
    assert!(matches!(update.methods(), Methods::Only(names) if names == ["PATCH"]));
    assert!(matches!(update.in_flight(), InFlight::Wait(limit) if limit.as_secs() == 1));
}
