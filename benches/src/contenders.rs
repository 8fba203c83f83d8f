//! One handler, bare and behind each of the libraries, all in process and with stores in memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::BodyExt;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use rustango::idempotency::IdempotencyRouterExt;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

/// What a client asks for.
#[derive(Serialize, Deserialize)]
pub struct Order {
    amount: u64,
    currency: String,
    customer: String,
    memo: String,
}

/// What it gets.
#[derive(Serialize)]
pub struct Receipt {
    id: &'static str,
    object: &'static str,
    status: &'static str,
    livemode: bool,
    created: u64,
    #[serde(flatten)]
    order: Order,
}

fn charge(order: Order) -> (StatusCode, Json<Receipt>) {
    let receipt = Receipt {
        id: "ch_3MmlLrLkdIwHu7ix0snN0B15",
        object: "charge",
        status: "succeeded",
        livemode: false,
        created: 1_679_090_539,
        order,
    };
    (StatusCode::CREATED, Json(receipt))
}

async fn bare(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    charge(order)
}

#[idempotent(scope = "charges")]
async fn guarded(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    charge(order)
}

async fn bare_held(Json(_): Json<Order>) -> (StatusCode, Json<Receipt>) {
    std::future::pending().await
}

#[idempotent(scope = "held")]
async fn guarded_held(Json(_): Json<Order>) -> (StatusCode, Json<Receipt>) {
    std::future::pending().await
}

/// A library under measurement, with a store of its own.
#[derive(Clone)]
pub struct Contender {
    /// Its name.
    pub name: &'static str,
    router: Router,
    /// Of a session, where the library keeps its records in one.
    cookie: Option<HeaderValue>,
    /// Whether it refuses the duplicate of a running request.
    pub locks: bool,
}

/// The path of the handler that answers at once.
pub const CHARGES: &str = "/charges";
/// The path of the handler that never answers.
pub const HELD: &str = "/held";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Contender {
    /// The handler alone.
    pub fn bare() -> Self {
        Self { name: "bare handler", router: bare_router(), cookie: None, locks: false }
    }

    /// `#[idempotent]`.
    pub fn ours() -> Self {
        let store = MemoryStore::builder().max_bytes(usize::MAX).build();
        let router = Router::new()
            .route(CHARGES, post(guarded))
            .route(HELD, post(guarded_held))
            .layer(Registry::new(store).layer());
        Self { name: "#[idempotent]", router, cookie: None, locks: true }
    }

    /// Rustango's router middleware.
    pub fn rustango() -> Self {
        let cache: rustango::cache::BoxedCache = Arc::new(rustango::cache::InMemoryCache::new());
        let router = bare_router().idempotency(rustango::idempotency::IdempotencyLayer::new(cache).ttl(DAY));
        Self { name: "rustango", router, cookie: None, locks: true }
    }

    /// `axum-idempotent`, in the session that it wants.
    pub async fn axum_idempotent() -> Self {
        use axum_idempotent::{IdempotentLayer, IdempotentOptions};
        use ruts::store::Ttl;
        use ruts::store::moka::MokaStore;
        use ruts::{CookieOptions, Session, SessionLayer};

        async fn log_in(session: Session<MokaStore>) {
            let ttl = Ttl::new(24 * 60 * 60).expect("a day is no odd time");
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
        Self { name: "axum-idempotent", router, cookie, locks: false }
    }

    /// `idempotent`.
    pub fn idempotent() -> Self {
        let store = idempotent::memory::MemoryStore::builder().try_build().expect("the defaults are valid");
        let layer = idempotent::middleware::IdempotencyLayer::new(store);
        Self { name: "idempotent", router: bare_router().layer(layer), cookie: None, locks: true }
    }

    /// All of them, each with an empty store.
    pub async fn all() -> [Self; 5] {
        [Self::bare(), Self::ours(), Self::rustango(), Self::axum_idempotent().await, Self::idempotent()]
    }

    /// Sends one request through all layers, and reads its response to the end.
    ///
    /// # Panics
    ///
    /// When the status is not the expected one: a wrong answer must not be measured.
    pub async fn send(&self, path: &str, key: Option<&str>, body: Bytes, expected: StatusCode) -> Bytes {
        let response = self.answer(path, key, body).await;
        assert_eq!(response.status(), expected, "{} at {path}", self.name);
        response.into_body().collect().await.expect("a body in memory does not break off").to_bytes()
    }

    /// Sends one request.
    ///
    /// # Panics
    ///
    /// Never: the request is well-formed and the router infallible.
    pub async fn answer(&self, path: &str, key: Option<&str>, body: Bytes) -> Response {
        let mut request = Request::post(path)
            .header(header::HOST, "127.0.0.1:3000")
            .header(header::USER_AGENT, "bench/1.0")
            .header(header::ACCEPT, "*/*")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Body::from(body)).expect("the request is well-formed");
        self.router.clone().oneshot(request).await.expect("a router is infallible")
    }
}

fn bare_router() -> Router {
    Router::new().route(CHARGES, post(bare)).route(HELD, post(bare_held))
}

/// The JSON of an order of this many bytes.
///
/// # Panics
///
/// When `bytes` is less than an order without a memo takes.
pub fn order(bytes: usize) -> Bytes {
    let order = |memo| Order { amount: 4_500, currency: "eur".into(), customer: "cus_9s6XKzkNRiz8i3".into(), memo };
    let json = |order| serde_json::to_vec(&order).expect("an order is plain data");
    let bare = json(order(String::new())).len();
    json(order("m".repeat(bytes.checked_sub(bare).expect("room for the fields")))).into()
}
