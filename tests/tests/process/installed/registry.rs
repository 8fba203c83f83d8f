//! Which registry and store a request uses, and how rejections are rendered.
//!
//! A process has only one installed registry, so one test covers everything about it.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{InstallError, Registry, idempotent, install, policies};
use idempotent_tests::{Logs, Runs, Server, answer};

#[idempotent(scope = "default-store")]
async fn in_the_default_store(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "named-store", store = "payments")]
async fn in_a_named_store(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "with-a-caller", caller = 1)]
async fn with_a_caller() {}

#[idempotent(scope = "never-again", caller = 1, store = "payments", after_crash = "reject")]
async fn never_again() {}

fn router(runs: &Runs) -> Router {
    Router::new()
        .route("/default", post(in_the_default_store))
        .route("/named", post(in_a_named_store))
        .route("/with-a-caller", post(with_a_caller))
        .route("/never-again", post(never_again))
        .with_state(runs.clone())
}

async fn requests_without_a_registry_are_rejected(server: &Server, runs: &Runs, logs: &Logs) {
    assert!(Registry::installed().is_none());
    for path in ["/default", "/named"] {
        let answer = server.post_with_key(path, "k").await;
        assert_eq!(
            (answer.status, answer.rejection().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
        );
        assert!(answer.headers.contains_key("retry-after"));
        assert!(answer.text().contains("This request ran nothing"), "{}", answer.text());
        assert!(!answer.text().contains("install"), "{}", answer.text());
    }
    assert_eq!(runs.started(), 0);
    let errors = logs.of_level("ERROR");
    assert_eq!(errors.len(), 2, "{errors:?}");
    for error in errors {
        for part in [
            "no registry is installed: the request ran nothing",
            "idempotent_runtime::install(store)",
            "after each `IdempotencyLayer`",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    assert_eq!(answer(server.post("/default")).await.text(), "charge 1", "without a key nothing is asked");
}

#[tokio::test]
async fn installed_registry_serves_routers_without_their_own() {
    let runs = Runs::free();
    let server = Server::start(router(&runs)).await;
    let logs = Logs::collect();

    requests_without_a_registry_are_rejected(&server, &runs, &logs).await;

    // A store that a handler names is missing.
    let error = install(MemoryStore::new()).expect_err("no store named payments");
    let InstallError::UnknownStore { name, handler, .. } = &error else { panic!("{error}") };
    assert_eq!(name, "payments");
    let message = error.to_string();
    let policy = policies().find(|policy| policy.scope() == "named-store").expect("it is annotated");
    for part in ["in_a_named_store", "registry.rs", "\"payments\"", &format!(":{}", policy.line()), handler] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(Registry::installed().is_none());

    // The store exists.
    let payments = MemoryStore::new();
    let installed = Registry::builder(MemoryStore::new()).store("payments", payments.clone()).build().install();
    assert!(installed.is_ok(), "{installed:?}");
    let warnings = logs.of_level("WARN");
    let [warning, forgotten] = &warnings[..] else { panic!("{warnings:?}") };
    for handler in ["registry::in_the_default_store", "registry::in_a_named_store", "caller"] {
        assert!(warning.contains(handler), "{handler} in {warning}");
    }
    assert!(!warning.contains("with_a_caller"), "{warning}");
    for part in ["store=\"payments\"", "registry::never_again", "forgets their claims", "use another store"] {
        assert!(forgotten.contains(part), "{part} in {forgotten}");
    }
    assert!(!forgotten.contains("in_a_named_store"), "{forgotten}");
    assert!(!server.post_with_key("/named", "k").await.is_replay());
    assert!(server.post_with_key("/named", "k").await.is_replay());
    assert_eq!(payments.len(), 1);
    assert!(!server.post_with_key("/default", "k").await.is_replay());
    assert!(server.post_with_key("/default", "k").await.is_replay());
    assert_eq!(payments.len(), 1, "the default store is another one");

    // Installing a second registry is an error.
    let again = Registry::builder(MemoryStore::new()).store("payments", MemoryStore::new()).build().install();
    assert!(matches!(again, Err(InstallError::AlreadyInstalled)), "{again:?}");

    // A layer's registry takes precedence over the installed one.
    let own = MemoryStore::new();
    let layered = Server::start(router(&runs).layer(Registry::new(own.clone()).layer())).await;
    assert!(!layered.post_with_key("/default", "k").await.is_replay());
    assert_eq!(own.len(), 1);

    // If a layer's registry lacks the named store, the request is rejected and the log says why.
    let answer = layered.post_with_key("/named", "k").await;
    assert_eq!(answer.rejection(), "store_unavailable");
    assert!(logs.of_level("ERROR").join("\n").contains("no registry with this store"));
}

#[tokio::test]
async fn rejections_are_rendered_as_the_registry_says() {
    let runs = Runs::free();
    let registry = Registry::builder(MemoryStore::new())
        .render_rejections(|rejection, _| {
            let body = format!("{{\"error\":{:?}}}", rejection.code());
            (StatusCode::IM_A_TEAPOT, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        })
        .build();
    let server = Server::start(router(&runs).layer(registry.layer())).await;
    let rejected = server.post_with_key("/default", "a,b").await;
    assert_eq!((rejected.status, rejected.text()), (StatusCode::IM_A_TEAPOT, "{\"error\":\"invalid_key\"}"));
}

#[test]
#[should_panic(expected = "already has a store named \"payments\"")]
fn two_stores_of_one_name_are_a_mistake() {
    let _ = Registry::builder(MemoryStore::new())
        .store("payments", MemoryStore::new())
        .store("payments", MemoryStore::new());
}

/// If `main` returns the error, the program prints it with `Debug`.
#[test]
fn debug_of_an_install_error_is_its_message() {
    let text = format!("{:?}", InstallError::AlreadyInstalled);
    assert_eq!(text, InstallError::AlreadyInstalled.to_string());
}
