//! The same handler behind the libraries with which this one is compared.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::routing::get;
use rustango::idempotency::IdempotencyRouterExt;
use tower::ServiceExt;

use crate::contenders::{Contender, bare_router};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of contenders.
pub const CONTENDERS: usize = 6;

/// The bare handler, this library, the guard by hand and the peers, each with an empty store.
pub async fn all() -> [Contender; CONTENDERS] {
    let [bare, ours, by_hand] = [Contender::bare(), Contender::ours().await, Contender::by_hand()];
    [bare, ours, by_hand, rustango(), axum_idempotent().await, idempotent()]
}

/// Rustango's router middleware.
fn rustango() -> Contender {
    let cache: rustango::cache::BoxedCache = Arc::new(rustango::cache::InMemoryCache::new());
    let router = bare_router().idempotency(rustango::idempotency::IdempotencyLayer::new(cache).ttl(DAY));
    Contender { name: "rustango", router, cookie: None, locks: true }
}

/// `axum-idempotent`, with the session that it needs.
async fn axum_idempotent() -> Contender {
    use axum_idempotent::{IdempotentLayer, IdempotentOptions};
    use ruts::store::Ttl;
    use ruts::store::moka::MokaStore;
    use ruts::{CookieOptions, Session, SessionLayer};

    async fn log_in(session: Session<MokaStore>) {
        let ttl = Ttl::new(24 * 60 * 60).expect("a day is a valid ttl");
        session.set("user", &String::from("alice"), ttl, None).await.expect("a session in memory takes a field");
    }
    let options = IdempotentOptions::default()
        .use_idempotency_key_header(Some("idempotency-key"), false)
        .expire_after(24 * 60 * 60);
    let sessions = SessionLayer::new(Arc::new(MokaStore::builder().build()))
        .with_cookie_options(CookieOptions::build().name("session").max_age(24 * 60 * 60).path("/"));
    let router = bare_router()
        .route("/log-in", get(log_in))
        .layer(IdempotentLayer::<MokaStore>::new(options))
        .layer(sessions)
        .layer(tower_cookies::CookieManagerLayer::new());
    let request = Request::get("/log-in")
        .header("idempotency-key", "log-in")
        .body(Body::empty())
        .expect("the request is well-formed");
    let response = router.clone().oneshot(request).await.expect("a router is infallible");
    let cookie = response.headers()[header::SET_COOKIE].to_str().expect("a cookie is text");
    let pair = cookie.split(';').next().expect("a split has a first part");
    let cookie = Some(HeaderValue::from_str(pair).expect("a cookie is a header value"));
    Contender { name: "axum-idempotent", router, cookie, locks: false }
}

/// `idempotent`.
fn idempotent() -> Contender {
    let store = idempotent::memory::MemoryStore::builder().try_build().expect("the defaults are valid");
    let layer = idempotent::middleware::IdempotencyLayer::new(store);
    Contender { name: "idempotent", router: bare_router().layer(layer), cookie: None, locks: true }
}
