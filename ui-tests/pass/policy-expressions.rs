//! Any expression is accepted, even one that waits. An expression that only looks like a borrow is not rejected.

#![deny(warnings)]

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::routing::post;
use idempotent_runtime::idempotent;

type Measure = fn(&str) -> usize;

#[derive(Clone)]
struct App {
    measure: Measure,
    name: &'static str,
}

impl FromRef<App> for Measure {
    fn from_ref(app: &App) -> Self {
        app.measure
    }
}

impl FromRef<App> for Closure {
    fn from_ref(app: &App) -> Self {
        Arc::new(app.measure)
    }
}

impl FromRef<App> for Reader {
    fn from_ref(_: &App) -> Self {
        Arc::new(Trims)
    }
}

impl FromRef<App> for &'static str {
    fn from_ref(app: &App) -> Self {
        app.name
    }
}

#[idempotent(
    key = if body.is_empty() { None } else { Some(&body) },
    caller = { let doubled = 2 * body.len(); doubled },
    fingerprint = match body.as_str() { "" => 0, _ => 1 },
    cache_if = |parts| parts.status.is_success(),
)]
async fn blocks(body: String) -> String {
    body
}

#[idempotent(caller = name_of(&body).await)]
async fn waits(body: String) -> String {
    body
}

async fn name_of(body: &str) -> String {
    body.to_uppercase()
}

#[idempotent(caller = measure(&body))]
async fn pointer(State(measure): State<fn(&str) -> usize>, State(name): State<&'static str>, body: String) -> String {
    format!("{name} {} {body}", measure(&body))
}

type Closure = Arc<dyn Fn(&str) -> usize + Send + Sync>;

#[idempotent]
async fn closure(State(measure): State<Arc<dyn Fn(&str) -> usize + Send + Sync>>, body: String) -> String {
    measure(&body).to_string()
}

trait Reads<'a>: Send + Sync {
    fn read(&self, text: &'a str) -> &'a str;
}

struct Trims;

impl<'a> Reads<'a> for Trims {
    fn read(&self, text: &'a str) -> &'a str {
        text.trim()
    }
}

type Reader = Arc<dyn for<'a> Reads<'a>>;

#[idempotent(caller = reader.read(&body))]
async fn object(State(reader): State<Arc<dyn for<'a> Reads<'a>>>, body: String) -> String {
    reader.read(&body).to_owned()
}

#[idempotent]
async fn bound<M: for<'a> Fn(&'a str) -> usize + Clone + Send + Sync + 'static>(
    State(measure): State<M>,
    body: String,
) -> String {
    measure(&body).to_string()
}

fn main() {
    let _: Router = Router::new()
        .route("/blocks", post(blocks))
        .route("/waits", post(waits))
        .route("/pointer", post(pointer))
        .route("/closure", post(closure))
        .route("/object", post(object))
        .route("/bound", post(bound::<Measure>))
        .with_state(App { measure: str::len, name: "app" });
}
