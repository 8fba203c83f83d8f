//! Handlers with many kinds of signatures.

use std::convert::Infallible;
use std::fmt::Display;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Form, FromRef, FromRequest, FromRequestParts, Multipart, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{Stream, stream};
use idempotent_runtime::idempotent;

#[derive(Clone)]
struct App;

#[derive(Clone)]
struct Ledger;

impl FromRef<App> for Ledger {
    fn from_ref(_: &App) -> Self {
        Self
    }
}

struct User {
    id: u64,
}

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = StatusCode;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        Ok(Self { id: 7 })
    }
}

struct Signed(String);

impl FromRequest<App> for Signed {
    type Rejection = StatusCode;

    async fn from_request(request: Request, app: &App) -> Result<Self, StatusCode> {
        String::from_request(request, app).await.map(Self).map_err(|_| StatusCode::BAD_REQUEST)
    }
}

type Answer<T> = Result<(StatusCode, T), StatusCode>;

#[idempotent]
async fn nothing() {}

#[idempotent]
pub async fn public(_: Form<Vec<(String, String)>>) -> impl IntoResponse {}

#[idempotent]
pub(crate) async fn bytes(_: axum::body::Bytes) -> StatusCode {
    StatusCode::OK
}

#[idempotent]
async fn text(mut body: String) -> String {
    body.push('!');
    body
}

#[idempotent]
async fn whole_request(request: Request) -> Result<impl IntoResponse, StatusCode> {
    if request.headers().is_empty() {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(request.uri().path().to_owned())
}

#[idempotent]
async fn multipart(mut form: Multipart) -> Answer<String> {
    let field = form.next_field().await.map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok((StatusCode::CREATED, field.and_then(|field| field.name().map(str::to_owned)).unwrap_or_default()))
}

#[idempotent(caller = user.id)]
async fn own(user: User, Signed(text): Signed) -> Response {
    (StatusCode::CREATED, format!("{} {text}", user.id)).into_response()
}

#[idempotent]
async fn parts(State(Ledger): State<Ledger>, Path((a, b)): Path<(u32, u32)>) -> String {
    (a + b).to_string()
}

#[idempotent]
async fn state_last(_: HeaderMap, State(_ledger): State<Ledger>) {}

#[idempotent]
async fn optional(body: Option<Json<u32>>) -> String {
    format!("{}", body.is_some())
}

#[idempotent]
async fn fallible(body: Result<Json<u32>, JsonRejection>) -> Result<Json<u32>, JsonRejection> {
    let Json(number) = body?;
    Ok(Json(number + 1))
}

#[idempotent]
async fn borrows_over_await(body: String) -> Result<String, StatusCode> {
    let words: Vec<&str> = body.split(' ').collect();
    tokio::task::yield_now().await;
    let first = words.first().ok_or(StatusCode::BAD_REQUEST)?;
    Ok((*first).to_owned())
}

/// Only the declared type determines the error type.
#[idempotent]
async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::iter(["a", "b"].map(|text| Ok(Event::default().data(text)))))
}

/// Only the declared type determines the type of the number.
#[idempotent]
async fn parsed(body: String) -> Result<Json<Vec<u64>>, StatusCode> {
    Ok(Json(body.split(',').map(|number| number.parse().map_err(|_| StatusCode::BAD_REQUEST)).collect::<Result<_, _>>()?))
}

trait Teller: Display + Clone + Send + Sync + 'static {}
impl<T: Display + Clone + Send + Sync + 'static> Teller for T {}

#[idempotent(caller = teller)]
async fn generic<T, const N: usize>(State(teller): State<T>, _: String) -> impl IntoResponse
where
    T: Teller,
{
    format!("{teller} {N}")
}

struct Api<T>(T);

impl<T: Teller + Default> Api<T> {
    const NAME: &'static str = "api";

    #[idempotent(caller = Self::NAME, cache_if = Self::is_final)]
    pub async fn create(_: HeaderMap) -> Result<Json<String>, Self> {
        if Self::NAME.is_empty() {
            return Err(Self(T::default()));
        }
        Ok(Json(Self::NAME.to_owned()))
    }

    fn is_final(parts: &axum::http::response::Parts) -> bool {
        parts.status.is_success()
    }
}

impl<T> IntoResponse for Api<T> {
    fn into_response(self) -> Response {
        StatusCode::IM_A_TEAPOT.into_response()
    }
}

#[idempotent]
async fn sixteen(
    _1: HeaderMap,
    _2: HeaderMap,
    _3: HeaderMap,
    _4: HeaderMap,
    _5: HeaderMap,
    _6: HeaderMap,
    _7: HeaderMap,
    _8: HeaderMap,
    _9: HeaderMap,
    _10: HeaderMap,
    _11: HeaderMap,
    _12: HeaderMap,
    _13: HeaderMap,
    _14: HeaderMap,
    _: HeaderMap,
    body: String,
) -> String {
    body
}

#[idempotent]
async fn r#try(r#type: String) -> String {
    r#type
}

macro_rules! plain_handlers {
    ($($name:ident, $scope:literal, $argument:ident: $ty:ty => $body:expr;)*) => {
        $(#[idempotent(scope = $scope, fingerprint = $argument.len())]
        async fn $name($argument: $ty) -> usize_text!() {
            $body
        })*
    };
}

macro_rules! usize_text {
    () => {
        String
    };
}

plain_handlers! {
    counted, "counted", body: String => body.len().to_string();
    repeated, "repeated", body: String => body.repeat(2);
}

#[cfg(any())]
#[idempotent]
async fn compiled_out(_: NoSuchType) {}

#[idempotent]
#[cfg(all())]
#[allow(unused_variables)]
async fn compiled_in(unused: String) {}

fn main() {
    let _: Router = Router::new()
        .route("/nothing", post(nothing).put(nothing))
        .route("/public", post(public))
        .route("/bytes", post(bytes))
        .route("/text", post(text))
        .route("/request", post(whole_request))
        .route("/multipart", post(multipart))
        .route("/own", post(own))
        .route("/parts", post(parts))
        .route("/state", post(state_last))
        .route("/optional", post(optional))
        .route("/fallible", post(fallible))
        .route("/borrows", post(borrows_over_await))
        .route("/events", post(events))
        .route("/parsed", post(parsed))
        .route("/generic", post(generic::<Name, 7>))
        .route("/api", post(Api::<Name>::create))
        .route("/sixteen", post(sixteen))
        .route("/try", post(r#try))
        .route("/counted", post(counted))
        .route("/repeated", post(repeated))
        .route("/compiled-in", post(compiled_in))
        .with_state(App);
}

#[derive(Clone, Default)]
struct Name;

impl Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("name")
    }
}

impl FromRef<App> for Name {
    fn from_ref(_: &App) -> Self {
        Self
    }
}
