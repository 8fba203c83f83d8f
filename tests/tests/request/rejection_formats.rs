//! The format of a rejection: by what its client accepts, with the API's own problem types, and with the application's
//! renderer.

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::HeaderValue;
use axum::http::header::{ACCEPT, ACCEPT_LANGUAGE, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idempotent_runtime::store::StoreAdmin as _;
use idempotent_runtime::{
    Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, RegistryBuilder, RejectedRequest, Rejection, StepError,
    Tx, idempotent, rejection,
};
use idempotent_tests::{Answer, Fault, FaultyStore, Runs, Server, answer};
use reqwest::RequestBuilder;
use sqlx::Sqlite;

#[idempotent(scope = "formats-plain")]
async fn plain(State(runs): State<Runs>, body: String) -> String {
    format!("run {} for {body}", runs.run().await)
}

#[idempotent(scope = "formats-required", required)]
async fn required(body: String) -> String {
    body
}

#[idempotent(scope = "formats-steps")]
async fn steps(idempotency: Idempotency) -> Result<String, StepError> {
    idempotency.step("charge", async || Ok::<_, StepError>(())).await?;
    idempotency.step("charge", async || Ok(String::new())).await
}

#[idempotent(scope = "formats-tx")]
async fn in_tx(_tx: Tx<Sqlite>) {}

/// Two arguments `Tx` do not compile, so this extractor contains both.
#[derive(FromRequestParts)]
struct TwoTransactions {
    _first: Tx<Sqlite>,
    _second: Tx<Sqlite>,
}

#[idempotent(scope = "formats-two-tx")]
async fn in_two_tx(_: TwoTransactions) {}

#[idempotent(scope = "formats-lost", lease = "1s", after_crash = "reject")]
async fn purged(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

struct Bench {
    server: Server,
}

impl Bench {
    async fn with(configure: impl FnOnce(RegistryBuilder) -> RegistryBuilder) -> Self {
        let registry = configure(Registry::builder(FaultyStore::new())).build();
        let policy = Policy::builder("formats-layer").required().build().expect("a valid policy");
        let layered = Router::new().route("/layered", post(async || "beneath a layer"));
        let app = Router::new()
            .route("/plain", post(plain))
            .route("/required", post(required))
            .route("/steps", post(steps))
            .route("/tx", post(in_tx))
            .route("/two-tx", post(in_two_tx))
            .route("/purged", post(purged))
            .with_state(Runs::free())
            .merge(layered.layer(IdempotencyLayer::new(policy).with_registry(registry.clone())));
        Self { server: Server::start(app.layer(registry.layer())).await }
    }

    /// A rejection of each kind, named by the stage that sends it, for requests with this header.
    async fn rejections(&self, name: &str, value: &str) -> Vec<(&'static str, Answer)> {
        let with = |request: RequestBuilder| answer(request.header(name, value));
        let keyed = |path: &str, key: &str| self.server.post(path).header("idempotency-key", key.to_owned());
        let first = answer(keyed("/plain", "k").body("one")).await;
        assert_eq!(first.status, 200, "{first:?}");
        vec![
            ("missing_key", with(self.server.post("/required")).await),
            ("missing_key", with(self.server.post("/layered")).await),
            ("invalid_key", with(keyed("/plain", "")).await),
            ("key_reused", with(keyed("/plain", "k").body("another")).await),
            ("step_failed", with(keyed("/steps", "k")).await),
            ("transaction_failed", with(keyed("/tx", "k")).await),
            ("transaction_failed", with(keyed("/two-tx", "k")).await),
        ]
    }
}

#[tokio::test]
async fn client_that_accepts_no_json_gets_text() {
    let bench = Bench::with(|registry| registry.problem_types("https://api.example.com/problems/")).await;
    for accepted in [
        "text/html",
        "text/event-stream, text/plain;q=0.5",
        "application/json;q=0, text/*",
        "image/*;q=1.0",
        "application/*;q=0, */*;q=0.5",
        "text/plain, application/problem+json;q=0.0, application/json;q=0, */*",
    ] {
        for (code, answer) in bench.rejections(ACCEPT.as_str(), accepted).await {
            assert_eq!(answer.headers[CONTENT_TYPE], "text/plain; charset=utf-8", "{code} for {accepted}");
            let text = answer.text();
            let end = format!("\n\ncode: {code}\ntype: https://api.example.com/problems/{code}\n");
            assert!(text.ends_with(&end), "{text:?} for {accepted}");
        }
    }
}

#[tokio::test]
async fn client_that_accepts_json_or_says_nothing_gets_a_problem() {
    let bench = Bench::with(|registry| registry).await;
    for accepted in [
        "",
        "*/*",
        "text/html, application/xhtml+xml, */*;q=0.8",
        "application/*",
        "Application/JSON; charset=utf-8",
        "application/problem+json;q=0.1",
        "application/vnd.api+json",
    ] {
        for (code, answer) in bench.rejections(ACCEPT.as_str(), accepted).await {
            assert_eq!(answer.rejection(), code, "for {accepted}");
        }
    }
    let silent = bench.server.post("/required").send().await.expect("the server answers");
    assert_eq!(silent.headers()[CONTENT_TYPE], "application/problem+json");
}

#[tokio::test]
async fn problem_types_are_pages_of_the_api() {
    let bench = Bench::with(|registry| registry.problem_types("https://api.example.com/problems#")).await;
    for (code, answer) in bench.rejections("x-other", "1").await {
        assert_eq!(answer.rejection(), code);
        assert_eq!(answer.json()["type"], format!("https://api.example.com/problems#{code}"));
    }
}

#[tokio::test]
async fn renderer_sees_the_head_of_the_request() {
    let render = |rejection: Rejection, request: &RejectedRequest| {
        let language = request.headers().get(ACCEPT_LANGUAGE).and_then(|language| language.to_str().ok());
        let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
        let echo = format!("{} {} {language:?} {key:?}", request.method(), request.uri());
        (rejection.status(), echo).into_response()
    };
    let bench = Bench::with(|registry| registry.render_rejections(render)).await;
    let echoes: Vec<String> = bench
        .rejections("accept-language", "fr")
        .await
        .into_iter()
        .map(|(_, answer)| answer.text().to_owned())
        .collect();
    assert_eq!(
        echoes,
        [
            "POST /required Some(\"fr\") None",
            "POST /layered Some(\"fr\") None",
            "POST /plain Some(\"fr\") Some(\"\")",
            "POST /plain Some(\"fr\") Some(\"k\")",
            "POST /steps Some(\"fr\") Some(\"k\")",
            "POST /tx Some(\"fr\") Some(\"k\")",
            "POST /two-tx Some(\"fr\") Some(\"k\")",
        ]
    );
}

/// The rejection comes after the handler, when the request itself no longer exists.
#[tokio::test]
async fn rejection_after_the_run_is_rendered_for_its_client() {
    let (store, runs) = (FaultyStore::new(), Runs::held());
    let render = |rejection: Rejection, request: &RejectedRequest| {
        format!("{} {:?}", rejection.code(), request.headers().get("x-id")).into_response()
    };
    let process = async || {
        let registry = Registry::builder(store.clone()).render_rejections(render).build();
        Server::start(Router::new().route("/", post(purged)).with_state(runs.clone()).layer(registry.layer())).await
    };
    let (here, elsewhere) = (process().await, process().await);
    let begin =
        |server: &Server| tokio::spawn(answer(server.post("/").header("idempotency-key", "k").header("x-id", "7")));
    let first = begin(&here);
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    assert!(store.purge(&RecordKey::new("formats-lost", None, "k")).await.expect("the store answers"));
    let second = begin(&elsewhere);
    runs.until_started(2).await;
    runs.let_finish(2);
    assert_eq!(first.await.expect("it is answered").text(), "claim_lost Some(\"7\")");
    assert_eq!(second.await.expect("it is answered").text(), "run 2");
}

#[tokio::test]
async fn renderer_can_leave_a_rejection_as_it_is() {
    let render = |rejection: Rejection, request: &RejectedRequest| request.problem(&rejection);
    let types = "https://api.example.com/problems/";
    let bench = Bench::with(|registry| registry.render_rejections(render).problem_types(types)).await;
    for (code, answer) in bench.rejections("x-other", "1").await {
        assert_eq!((answer.rejection(), &answer.json()["type"]), (code.to_owned(), &format!("{types}{code}").into()));
    }
    for (code, answer) in bench.rejections(ACCEPT.as_str(), "text/html").await {
        assert!(answer.text().contains(&format!("code: {code}")), "{answer:?}");
    }
}

#[tokio::test]
async fn retry_after_is_sent_whatever_a_renderer_does() {
    let store = FaultyStore::new();
    store.on_claim(Fault::Unreachable);
    let answer = async |render: fn(Rejection, &RejectedRequest) -> Response| {
        let registry = Registry::builder(store.clone()).render_rejections(render).build();
        let app = Router::new().route("/", post(plain)).with_state(Runs::free()).layer(registry.layer());
        Server::start(app).await.post_with_key("/", "k").await
    };
    let forgetful = answer(|rejection, _| rejection.status().into_response()).await;
    assert_eq!((forgetful.status.as_u16(), &forgetful.headers[RETRY_AFTER]), (503, &HeaderValue::from(1)));
    let deliberate = answer(|rejection, _| (rejection.status(), [(RETRY_AFTER, "7")]).into_response()).await;
    assert_eq!(deliberate.headers[RETRY_AFTER], "7");
}

#[tokio::test]
async fn stripes_errors_link_to_the_pages_of_the_api() {
    let registry = |registry: RegistryBuilder| registry.render_rejections(rejection::stripe);
    let bench = Bench::with(|builder| registry(builder).problem_types("https://api.example.com/problems/")).await;
    for (code, answer) in bench.rejections("x-other", "1").await {
        assert_eq!(answer.json()["error"]["doc_url"], format!("https://api.example.com/problems/{code}"));
    }
}

#[test]
fn base_of_problem_types_that_joins_no_code_is_told() {
    for (base, told) in [
        ("https://api.example.com/problems", "must end with `/`, `#`, `=` or `:`"),
        ("https://api.example.com/my problems/", "must be a URI"),
        ("", "must be a URI"),
    ] {
        let panic = std::panic::catch_unwind(|| Registry::builder(FaultyStore::new()).problem_types(base).build());
        let panic = panic.expect_err("it is rejected");
        let message = panic.downcast_ref::<String>().expect("it has a message");
        assert!(message.contains(told), "{message}");
    }
}
