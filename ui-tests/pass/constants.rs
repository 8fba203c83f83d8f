//! Constants of the program in place of literals: a path, or any expression that the compiler evaluates.

#![deny(warnings)]

use std::time::Duration;

use idempotent_runtime::{InFlight, idempotent};

mod settings {
    use std::time::Duration;

    pub const TTL: Duration = Duration::from_secs(2 * 60 * 60);
    pub const SHORT: Duration = Duration::from_secs(10);
    pub const SCOPE: &str = "constants";
    pub const MAX_BODY: usize = 64 * 1024;

    pub struct Payments;

    impl Payments {
        pub const STORE: &'static str = "payments";
    }
}

use settings::{MAX_BODY, SCOPE, TTL};

const LEASE: Duration = Duration::from_millis(1_500);

#[idempotent(
    scope = SCOPE,
    ttl = TTL,
    lease = crate::LEASE,
    max_body = MAX_BODY,
    in_flight = wait(settings::SHORT),
    store = settings::Payments::STORE
)]
pub async fn paths(body: String) -> String {
    body
}

#[idempotent(scope = concat!("constants-", "computed"), ttl = Duration::from_secs(60), max_body = MAX_BODY / 2)]
pub async fn expressions(body: String) -> String {
    body
}

/// The default lease is never longer than the ttl.
#[idempotent(ttl = settings::SHORT)]
pub async fn default_lease() {}

/// A constant beside a literal.
#[idempotent(ttl = "5s", lease = LEASE)]
pub async fn mixed() {}

struct Charges;

impl Charges {
    const TTL: Duration = Duration::from_secs(600);

    #[idempotent(ttl = Charges::TTL)]
    async fn method(body: String) -> String {
        body
    }
}

macro_rules! handler {
    ($name:ident, $ttl:expr, $lease:path) => {
        #[idempotent(ttl = $ttl, lease = $lease)]
        pub async fn $name() {}
    };
}

handler!(of_a_macro, TTL, LEASE);

fn main() {
    let policy = |name: &str| idempotent_runtime::policies().find(|policy| policy.handler().ends_with(name)).unwrap();
    let paths = policy("paths");
    assert_eq!((paths.scope(), paths.ttl(), paths.lease()), ("constants", TTL, LEASE));
    assert_eq!((paths.max_body(), paths.store()), (MAX_BODY, Some("payments")));
    assert_eq!(paths.in_flight(), InFlight::Wait(settings::SHORT));
    let expressions = policy("expressions");
    assert_eq!((expressions.scope(), expressions.ttl()), ("constants-computed", Duration::from_secs(60)));
    assert_eq!((expressions.max_body(), expressions.lease()), (MAX_BODY / 2, Duration::from_secs(30)));
    assert_eq!(policy("default_lease").lease(), settings::SHORT);
    assert_eq!((policy("mixed").ttl(), policy("mixed").lease()), (Duration::from_secs(5), LEASE));
    assert_eq!(policy("method").ttl(), Charges::TTL);
    assert_eq!((policy("of_a_macro").ttl(), policy("of_a_macro").lease()), (TTL, LEASE));
    let _: axum::Router = axum::Router::new().route("/", axum::routing::post(Charges::method));
}
