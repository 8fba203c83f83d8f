//! Forms, and pages of another origin: over HTTP and in a real browser.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use futures_util::FutureExt as _;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, PATIENCE, Runs, Server, answer};
use reqwest::Method;
use serde_json::json;
use tower_http::cors::{Any, CorsLayer};

use crate::chromium::Chromium;
use crate::guide::page;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[idempotent(scope = "browser-orders", cache = [201])]
async fn create_order(State(runs): State<Runs>, _order: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

#[derive(serde::Deserialize)]
struct NewOrder {
    item: String,
    key: String,
}

#[idempotent(scope = "browser-forms", key = order.key, required)]
async fn create_order_by_form(State(runs): State<Runs>, Form(order): Form<NewOrder>) -> Redirect {
    Redirect::to(&format!("/orders/{}-{}", order.item, runs.run().await))
}

fn orders(runs: &Runs) -> Router {
    let registry = Registry::new(MemoryStore::new());
    let routes = Router::new().route("/orders", post(create_order)).route("/forms", post(create_order_by_form));
    routes.with_state(runs.clone()).layer(registry.layer())
}

fn cors() -> CorsLayer {
    let origin = CorsLayer::new().allow_origin(HeaderValue::from_static("https://shop.example"));
    let allowing = origin.allow_methods([Method::POST]).allow_headers([header::CONTENT_TYPE, KEY]);
    allowing.expose_headers([header::RETRY_AFTER, REPLAYED])
}

async fn send(server: &Server, body: &'static str) -> Answer {
    let request = server.post("/orders").header("origin", "https://shop.example").header("idempotency-key", "k");
    answer(request.body(body)).await
}

#[tokio::test]
async fn preflight_of_a_page_allows_the_key_and_claims_nothing() {
    let runs = Runs::free();
    let server = Server::start(orders(&runs).layer(cors())).await;
    let preflight = server.request(Method::OPTIONS, "/orders").header("origin", "https://shop.example");
    let preflight = preflight.header("access-control-request-method", "POST");
    let preflight = answer(preflight.header("access-control-request-headers", "content-type,idempotency-key")).await;
    assert_eq!(preflight.status, StatusCode::OK);
    assert_eq!(preflight.headers["access-control-allow-headers"], "content-type,idempotency-key");
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn answers_to_a_page_expose_the_mark_and_retry_after() {
    let runs = Runs::held();
    let server = Server::start(orders(&runs).layer(cors())).await;
    let (first, in_flight) = tokio::join!(send(&server, "tea"), async {
        runs.until_started(1).await;
        let in_flight = tokio::time::timeout(PATIENCE / 2, send(&server, "tea")).await;
        runs.let_finish(1);
        in_flight.expect("it is rejected, and does not run")
    });
    let (replay, reused) = (send(&server, "tea").await, send(&server, "ham").await);
    assert!(replay.is_replay() && !first.is_replay());
    assert_eq!((in_flight.rejection().as_str(), reused.rejection().as_str()), ("in_flight", "key_reused"));
    assert!(in_flight.headers.contains_key("retry-after"));
    for answer in [first, in_flight, replay, reused] {
        assert_eq!(answer.headers["access-control-allow-origin"], "https://shop.example");
        assert_eq!(answer.headers["access-control-expose-headers"], "retry-after,idempotent-replayed");
    }
}

#[tokio::test]
async fn form_with_a_hidden_key_sent_twice_runs_once() {
    let runs = Runs::free();
    let server = Server::start(orders(&runs)).await;
    // The client of `Server` follows redirects.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    let send = async |item: &str, key: &str| {
        let request = client.post(format!("http://{}/forms", server.address()));
        answer(request.form(&[("item", item), ("key", key)])).await
    };
    let first = send("tea", "8e03978e").await;
    assert_eq!(
        (first.status, &first.headers["location"]),
        (StatusCode::SEE_OTHER, &"/orders/tea-1".parse().expect("text"))
    );
    let second = send("tea", "8e03978e").await;
    assert_eq!((second.is_replay(), &second.headers["location"]), (true, &first.headers["location"]));
    assert_eq!(send("ham", "8e03978e").await.rejection(), "key_reused");
    assert_eq!(send("tea", "").await.rejection(), "invalid_key");
    assert_eq!(send("tea", "another").await.headers["location"], "/orders/tea-2");
}

/// Acts as a proxy that loses the response to the first request after the handler has run.
async fn lose_the_first(State(lost): State<Arc<AtomicBool>>, request: Request, next: Next) -> Response {
    let is_post = request.method() == Method::POST;
    let response = next.run(request).await;
    if is_post && !lost.swap(true, Ordering::SeqCst) { StatusCode::BAD_GATEWAY.into_response() } else { response }
}

/// The script of the page, with shorter pauses, followed by `call`.
fn with_script_of_the_page(call: &str) -> String {
    let page = page("browsers");
    let (_, script) = page.split_once("```js\n").expect("the page has a script");
    let (script, _) = script.split_once("```").expect("the block ends");
    let hurry = "const setTimeout = (go, pause) => window.setTimeout(go, pause / 50);";
    format!("(async () => {{ {hurry} {script} {call} }})()")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn script_of_the_page_in_a_browser_retries_with_one_key() {
    let chromium = Chromium::start().await;
    // The browser must end even if the test fails.
    let outcome = AssertUnwindSafe(visit(&chromium)).catch_unwind().await;
    chromium.driver.clone().quit().await.expect("Chromium ends");
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}

async fn visit(chromium: &Chromium) {
    let shop = Server::start(Router::new().route("/", get(async || Html("<!doctype html><title>Shop</title>")))).await;
    chromium.driver.goto(format!("http://{}/", shop.address())).await.expect("the page opens");
    let call = async |server: &Server| {
        let url = format!("http://{}/orders", server.address());
        let script = format!(
            "try {{ const got = await post({url:?}, {{ item: 'tea' }});
                return [got.status, got.headers.get('Idempotent-Replayed'), await got.text()]; }}
             catch (error) {{ return error.name; }}"
        );
        chromium.evaluate(&with_script_of_the_page(&script)).await
    };
    let losing = |runs: &Runs| {
        let lost = axum::middleware::from_fn_with_state(Arc::<AtomicBool>::default(), lose_the_first);
        orders(runs).layer(lost)
    };
    let any = || CorsLayer::new().allow_origin(Any).allow_methods([Method::POST]);
    let key_allowed = || any().allow_headers([header::CONTENT_TYPE, KEY]);

    let runs = Runs::free();
    let server =
        Server::start(losing(&runs).layer(key_allowed().expose_headers([header::RETRY_AFTER, REPLAYED]))).await;
    assert_eq!(call(&server).await, json!([201, "true", "run 1"]));
    assert_eq!(runs.started(), 1);

    let (runs, exposes_nothing) = (Runs::free(), key_allowed());
    let server = Server::start(losing(&runs).layer(exposes_nothing)).await;
    assert_eq!(call(&server).await, json!([201, null, "run 1"]));

    let (runs, allows_no_key) = (Runs::free(), any().allow_headers([header::CONTENT_TYPE]));
    let server = Server::start(losing(&runs).layer(allows_no_key)).await;
    assert_eq!(call(&server).await, json!("TypeError"));
    assert_eq!(runs.started(), 0);

    // Without a CORS layer around the guard the server answers, but the page cannot read the response.
    let preflight_only = from_fn(async |request: Request, next: Next| {
        let is_preflight = request.method() == Method::OPTIONS;
        let headers = [("access-control-allow-origin", "*"), ("access-control-allow-headers", "*")];
        if is_preflight { headers.into_response() } else { next.run(request).await }
    });
    let runs = Runs::free();
    let server = Server::start(orders(&runs).layer(preflight_only)).await;
    assert_eq!(call(&server).await, json!("TypeError"));
    assert_eq!(runs.started(), 1, "five attempts have one key");
}
