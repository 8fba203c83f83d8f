//! The contenders: one handler, bare and guarded, in process and with a store in memory.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::BodyExt;
use idempotent_runtime::idempotent;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use tower::ServiceExt;

use crate::by_hand;
use crate::charge::{CHARGES, HELD, Order, Receipt, charge};

async fn bare(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    charge(order)
}

#[idempotent(scope = "charges")]
async fn guarded(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    charge(order)
}

async fn bare_held(Json(_): Json<Order>) -> (StatusCode, Json<Receipt>) {
    hold().await
}

#[idempotent(scope = "held")]
async fn guarded_held(Json(_): Json<Order>) -> (StatusCode, Json<Receipt>) {
    hold().await
}

static HELD_RUNS: AtomicUsize = AtomicUsize::new(0);

/// How many executions of the handler that never answers have begun, in all contenders.
pub fn held_runs() -> usize {
    HELD_RUNS.load(Ordering::SeqCst)
}

pub(crate) async fn hold() -> (StatusCode, Json<Receipt>) {
    HELD_RUNS.fetch_add(1, Ordering::SeqCst);
    std::future::pending().await
}

/// A library under measurement, with its own store.
#[derive(Clone)]
pub struct Contender {
    /// Its name.
    pub name: &'static str,
    pub(crate) router: Router,
    /// The cookie of a session, if the library keeps its records in one.
    pub(crate) cookie: Option<HeaderValue>,
    /// Whether it rejects the duplicate of a running request.
    pub locks: bool,
}

impl Contender {
    /// The bare handler.
    pub fn bare() -> Self {
        Self { name: "bare handler", router: bare_router(), cookie: None, locks: false }
    }

    /// A guard that is written by hand: the least that a guard can cost.
    pub fn by_hand() -> Self {
        Self { name: "by hand", router: by_hand::router(), cookie: None, locks: true }
    }

    /// `#[idempotent]`, in a program that installs its registry at start-up.
    pub async fn ours() -> Self {
        static STORE: OnceLock<MemoryStore> = OnceLock::new();
        let store = STORE.get_or_init(|| {
            let store = MemoryStore::builder().max_bytes(usize::MAX).build();
            idempotent_runtime::install(store.clone()).expect("it is the first one, and the handlers ask for no other");
            store
        });
        empty(store).await;
        let router = Router::new().route(CHARGES, post(guarded)).route(HELD, post(guarded_held));
        Self { name: "#[idempotent]", router, cookie: None, locks: true }
    }

    /// Returns whether this is the handler without a guard, which runs for each request.
    pub fn is_bare(&self) -> bool {
        self.name == "bare handler"
    }

    /// Sends one request through all layers, and reads its response to the end.
    ///
    /// # Panics
    ///
    /// When the status is not the expected one, because a wrong answer must not be measured.
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
            .header(header::HOST, HeaderValue::from_static("127.0.0.1:3000"))
            .header(header::USER_AGENT, HeaderValue::from_static("bench/1.0"))
            .header(header::ACCEPT, HeaderValue::from_static("*/*"))
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
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

async fn empty(store: &MemoryStore) {
    loop {
        let page = store.list(None, 1_000).await.expect("a store in memory answers");
        for entry in &page.entries {
            store.purge(&entry.key).await.expect("a store in memory answers");
        }
        if page.next.is_none() {
            return;
        }
    }
}

pub(crate) fn bare_router() -> Router {
    Router::new().route(CHARGES, post(bare)).route(HELD, post(bare_held))
}
