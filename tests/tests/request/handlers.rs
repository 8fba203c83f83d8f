//! The attribute on handlers of every form, under the strictest lints, called by axum and called directly.

#![forbid(unsafe_code)]
#![deny(missing_docs, warnings, clippy::pedantic)]

use std::collections::HashMap;
use std::fmt::Display;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Form, FromRef, FromRequest, Multipart, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use axum::{Json, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Idempotency, Registry, idempotent, policies};
use idempotent_tests::{Runs, Server, answer};

#[derive(Clone)]
struct App {
    runs: Runs,
    price: u32,
}

impl FromRef<App> for Runs {
    fn from_ref(app: &App) -> Self {
        app.runs.clone()
    }
}

/// The number in the body plus one, with a concrete state.
struct Next(u32);

impl FromRequest<App> for Next {
    type Rejection = StatusCode;

    async fn from_request(request: Request, app: &App) -> Result<Self, StatusCode> {
        let body = String::from_request(request, app).await.map_err(|_| StatusCode::BAD_REQUEST)?;
        body.trim().parse::<u32>().map(|number| Self(number + app.price)).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)
    }
}

type Answer = Result<(StatusCode, String), StatusCode>;

/// Has documentation, as all handlers here.
#[idempotent]
pub async fn bare() {}

#[idempotent(scope = "json")]
pub(crate) async fn json(State(runs): State<Runs>, Json(mut list): Json<Vec<u32>>) -> Answer {
    list.push(u32::try_from(runs.run().await).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?);
    if list.len() > 3 {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok((StatusCode::CREATED, format!("{list:?}")))
}

#[idempotent(scope = "form")]
async fn form(Form(fields): Form<HashMap<String, String>>) -> impl IntoResponse {
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort();
    Json(fields)
}

/// Its author does not know `Completion`, which must be used too.
#[idempotent(scope = "bytes")]
#[must_use]
async fn bytes(body: axum::body::Bytes) -> Vec<u8> {
    body.to_vec()
}

#[idempotent(scope = "request")]
async fn request(request: Request) -> Result<impl IntoResponse, StatusCode> {
    if request.headers().contains_key("x-reject") {
        return Err(StatusCode::FORBIDDEN);
    }
    let body = axum::body::to_bytes(request.into_body(), 1000).await.map_err(|_| StatusCode::BAD_REQUEST)?;
    let borrowed = std::str::from_utf8(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    tokio::task::yield_now().await;
    Ok(borrowed.to_uppercase())
}

#[idempotent(scope = "handlers-multipart")]
async fn multipart(mut form: Multipart) -> Answer {
    let mut names = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|_| StatusCode::BAD_REQUEST)? {
        names.push(field.name().unwrap_or_default().to_owned());
    }
    Ok((StatusCode::OK, names.join(",")))
}

#[idempotent(scope = "own")]
async fn own_extractor(Next(number): Next) -> String {
    number.to_string()
}

#[idempotent(scope = "parts")]
async fn parts_last(Path((shop, id)): Path<(String, u32)>, State(App { price, .. }): State<App>) -> String {
    format!("{shop} {id} {price}")
}

#[idempotent(scope = "option")]
async fn optional(body: Option<Json<u32>>) -> String {
    body.map_or_else(|| "none".to_owned(), |Json(number)| number.to_string())
}

#[idempotent(scope = "result")]
async fn fallible(body: Result<Json<u32>, JsonRejection>) -> Response {
    match body {
        Ok(Json(number)) => number.to_string().into_response(),
        Err(rejection) => (StatusCode::IM_A_TEAPOT, rejection.body_text()).into_response(),
    }
}

#[idempotent(scope = "ignored")]
async fn ignored(_: State<Runs>, _unused: HeaderMap, _: String) -> &'static str {
    "ignored"
}

#[idempotent(scope = "sixteen")]
#[expect(clippy::too_many_arguments)]
async fn sixteen(
    _u1: Uri,
    _u2: Uri,
    _u3: Uri,
    _u4: Uri,
    _u5: Uri,
    _u6: Uri,
    _u7: Uri,
    _u8: Uri,
    _u9: Uri,
    _u10: Uri,
    _u11: Uri,
    _u12: Uri,
    _u13: Uri,
    _u14: Uri,
    uri: Uri,
    body: String,
) -> String {
    format!("{} {body}", uri.path())
}

trait Teller: Clone + Send + Sync + 'static {
    const NAME: &'static str;
}

#[derive(Clone)]
struct Till;

impl Teller for Till {
    const NAME: &'static str = "till";
}

impl FromRef<App> for Till {
    fn from_ref(_: &App) -> Self {
        Self
    }
}

#[idempotent(scope = "generic", caller = T::NAME)]
async fn generic<T, const N: usize>(State(_teller): State<T>, body: String) -> impl IntoResponse
where
    T: Teller,
{
    format!("{} {N} {body}", T::NAME)
}

struct Api<T>(std::marker::PhantomData<T>);

impl<T: Teller + Display + Default> Api<T> {
    const PREFIX: &'static str = "api";

    #[idempotent(scope = "handlers-api", caller = Self::PREFIX, cache_if = Self::is_final)]
    async fn create(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
        (Self::status(), format!("{} {} {body} {}", Self::PREFIX, T::default(), runs.run().await))
    }

    fn status() -> StatusCode {
        StatusCode::PAYMENT_REQUIRED
    }

    fn is_final(parts: &axum::http::response::Parts) -> bool {
        parts.status == Self::status()
    }
}

#[derive(Clone, Default)]
struct Counter;

impl Teller for Counter {
    const NAME: &'static str = "desk";
}

impl Display for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAME)
    }
}

macro_rules! handlers {
    ($($name:ident says $what:literal),*) => {
        $(#[idempotent]
        async fn $name() -> &'static str {
            $what
        })*
    };
}

handlers!(first says "one", second says "two");

#[axum::debug_handler(state = App)]
#[idempotent(scope = "debug-above")]
async fn debug_above(State(runs): State<Runs>, body: String) -> String {
    format!("{body} {}", runs.run().await)
}

#[idempotent(scope = "debug-below")]
#[axum::debug_handler(state = App)]
#[tracing::instrument(skip(runs, order), fields(amount = order.0))]
async fn debug_below(State(runs): State<Runs>, order: Json<u32>) -> String {
    format!("{} {}", order.0, runs.run().await)
}

#[idempotent(scope = "debug-below-alone")]
#[axum::debug_handler]
async fn debug_below_without_arguments() -> &'static str {
    std::future::ready("alone").await
}

#[axum::debug_handler]
#[idempotent(scope = "debug-above-alone")]
async fn debug_above_with_unit((): ()) -> &'static str {
    std::future::ready("with unit").await
}

#[cfg(any())]
#[idempotent(scope = "never")]
async fn compiled_out(_: NoSuchType) {}

fn routes() -> [(&'static str, MethodRouter<App>); 22] {
    [
        ("/bare", post(bare)),
        ("/json", post(json)),
        ("/form", post(form)),
        ("/bytes", post(bytes)),
        ("/request", post(request)),
        ("/multipart", post(multipart)),
        ("/own", post(own_extractor)),
        ("/parts/{shop}/{id}", post(parts_last)),
        ("/option", post(optional)),
        ("/result", post(fallible)),
        ("/ignored", post(ignored)),
        ("/sixteen", post(sixteen)),
        ("/generic", post(generic::<Till, 7>)),
        ("/api", post(Api::<Counter>::create)),
        ("/first", post(first)),
        ("/second", post(second)),
        ("/debug-above", post(debug_above)),
        ("/debug-below", post(debug_below)),
        ("/debug-below-alone", post(debug_below_without_arguments)),
        ("/debug-above-with-unit", post(debug_above_with_unit)),
        ("/query", post(query)),
        ("/closure-like", post(layered).layer(tower::layer::util::Identity::new())),
    ]
}

#[idempotent(scope = "query")]
async fn query(Query(parameters): Query<HashMap<String, String>>) -> Json<HashMap<String, String>> {
    Json(parameters)
}

#[idempotent(scope = "layered")]
async fn layered(idempotency: Idempotency) -> String {
    format!("{:?} {}", idempotency.key(), idempotency.attempt())
}

async fn serve(runs: &Runs) -> Server {
    let router = routes().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    let app = App { runs: runs.clone(), price: 5 };
    Server::start(router.with_state(app).layer(Registry::new(MemoryStore::new()).layer())).await
}

#[tokio::test]
async fn every_shape_of_handler_answers_and_replays() {
    let server = serve(&Runs::free()).await;
    let json = "application/json";
    let form = "application/x-www-form-urlencoded";
    let cases: [(&str, &str, &str, u16, &str); 23] = [
        ("/bare", "", "", 200, ""),
        ("/json", json, "[7]", 201, "[7, 1]"),
        ("/form", form, "b=2&a=1", 200, r#"[["a","1"],["b","2"]]"#),
        ("/bytes", "", "tea", 200, "tea"),
        ("/request", "", "tea", 200, "TEA"),
        (
            "/multipart",
            "multipart/form-data; boundary=x",
            "--x\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n1\r\n--x--\r\n",
            200,
            "a",
        ),
        ("/own", "", " 7 ", 200, "12"),
        ("/parts/shop/7", "", "", 200, "shop 7 5"),
        ("/option", json, "7", 200, "7"),
        ("/result", json, "7", 200, "7"),
        ("/ignored", "", "", 200, "ignored"),
        ("/sixteen", "", "tea", 200, "/sixteen tea"),
        ("/generic", "", "tea", 200, "till 7 tea"),
        ("/api", "", "tea", 402, "api desk tea 2"),
        ("/first", "", "", 200, "one"),
        ("/second", "", "", 200, "two"),
        ("/debug-above", "", "tea", 200, "tea 3"),
        ("/debug-below", json, "7", 200, "7 4"),
        ("/debug-below-alone", "", "", 200, "alone"),
        ("/debug-above-with-unit", "", "", 200, "with unit"),
        ("/query?a=1", "", "", 200, r#"{"a":"1"}"#),
        ("/closure-like", "", "", 200, "Some(\"k\") 1"),
        ("/option?again", "", "", 200, "none"),
    ];
    for (target, content_type, body, status, text) in cases {
        let key = if target.ends_with("again") { "again" } else { "k" };
        let send = || {
            let request = server.post(target).header("idempotency-key", key).body(body);
            answer(if content_type.is_empty() { request } else { request.header("content-type", content_type) })
        };
        let first = send().await;
        assert_eq!((first.status.as_u16(), first.text(), first.is_replay()), (status, text, false), "{target}");
        let second = send().await;
        assert_eq!((second.status.as_u16(), second.text(), second.is_replay()), (status, text, true), "{target}");
    }
}

#[tokio::test]
async fn a_failing_extractor_answers_itself_and_claims_nothing() {
    let server = serve(&Runs::free()).await;
    let json = |body: &'static str| {
        answer(
            server.post("/json").header("idempotency-key", "k").header("content-type", "application/json").body(body),
        )
    };
    assert_eq!(json("no json").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(json(r#"{"a":1}"#).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(json("[7]").await.text(), "[7, 1]", "the key is free");
    let fallible = answer(server.post("/result").header("idempotency-key", "k").body("7")).await;
    assert_eq!(fallible.status, StatusCode::IM_A_TEAPOT, "the handler sees the rejection itself");
    let own = answer(server.post("/own").header("idempotency-key", "k").body("no number")).await;
    assert_eq!(own.status, StatusCode::UNPROCESSABLE_ENTITY);
    let early = server.post("/request").header("idempotency-key", "k").header("x-reject", "1");
    assert_eq!(answer(early).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_unit_test_calls_a_handler_directly() {
    let runs = Runs::free();
    let response = json(State(runs.clone()), Json(vec![1, 2]).into()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.expect("a body"), "[1, 2, 1]");
    json(State(runs.clone()), Json(vec![]).into()).await;
    assert_eq!(runs.started(), 2, "such a call is not guarded");
}

#[test]
fn policies_lists_every_handler_once() {
    let of = |name: &str| {
        let handler = format!("{}::{name}", module_path!());
        let found: Vec<_> = policies().filter(|policy| policy.handler() == handler).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found[0]
    };
    for name in ["bare", "debug_above", "debug_below", "first", "second", "generic", "create"] {
        let policy = of(name);
        assert!(policy.file().ends_with("handlers.rs") && policy.line() > 0 && policy.column() > 0, "{policy}");
    }
    assert_eq!(of("bare").scope(), concat!(module_path!(), "::bare"));
    assert_eq!(of("debug_above").scope(), "debug-above");
    let of_this_file = policies().filter(|policy| policy.file() == file!());
    assert_eq!(of_this_file.count(), 22, "one for each, and none for the one that is compiled out");
}
