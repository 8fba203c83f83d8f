//! The OpenAPI document of the running server: displayed, linted, and compared with what the server does.

#[path = "../support/mod.rs"]
mod support;
mod tools;

use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use self::support::{LOG, Process};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi");

fn server() -> (TempDir, Process) {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Process::start(data.path(), &["--network-latency", "0ms"]);
    (data, server)
}

async fn get(server: &Process, path: &str) -> reqwest::Response {
    let response = reqwest::get(format!("http://{}{path}", server.address)).await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
    response
}

fn assert_finds_nothing(mut tool: Command) -> String {
    let Output { status, stdout, stderr } = tool.output().unwrap_or_else(|error| panic!("{tool:?}: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{tool:?}: {status}\n{said}\n{errors}");
    format!("{said}{errors}")
}

#[tokio::test]
async fn the_document_says_how_charges_and_refunds_are_guarded() {
    let (_data, server) = server();
    let document: Value = get(&server, "/openapi.json").await.json().await.expect("JSON");
    let operation = |path: &str| document["paths"][path]["post"].clone();
    for (path, scope, required) in [("/charges", "charges", false), ("/refunds", "refunds", true)] {
        let operation = operation(path);
        let parameters = operation["parameters"].as_array().expect("parameters");
        assert_eq!((&parameters[0]["name"], &parameters[0]["required"]), (&"idempotency-key".into(), &required.into()));
        assert_eq!(operation["x-idempotency"]["scope"], scope);
        for status in ["400", "409", "422", "503"] {
            assert!(
                operation["responses"][status]["content"]["application/problem+json"].is_object(),
                "{path} {status}"
            );
        }
    }
    assert_eq!(operation("/network-events")["parameters"], Value::Null, "the key is in the body");
    assert_eq!(operation("/network-events")["requestBody"]["required"], true);
    assert_eq!(document["paths"]["/charges/{id}"]["get"]["x-idempotency"], Value::Null);
    let page = get(&server, "/docs/").await.text().await.expect("a page");
    assert!(page.contains("swagger-ui"), "{page}");
    assert!(
        get(&server, "/docs/swagger-initializer.js").await.text().await.expect("a script").contains("/openapi.json")
    );
}

#[tokio::test]
async fn a_linter_and_a_validator_find_nothing_in_the_document() {
    let (data, server) = server();
    let document = data.path().join("openapi.json");
    std::fs::write(&document, get(&server, "/openapi.json").await.bytes().await.expect("bytes")).expect("a file");
    let mut linter = tools::redocly();
    // Without this, the linter sends usage data and looks for updates in every run.
    linter.env("REDOCLY_TELEMETRY", "off").env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true");
    linter.current_dir(data.path()).args(["lint", "--extends=recommended-strict", "openapi.json"]);
    assert_finds_nothing(linter);
    let mut validator = tools::python("openapi-spec-validator");
    validator.arg(&document);
    assert_finds_nothing(validator);
}

#[tokio::test]
async fn made_up_requests_get_only_documented_answers() {
    let (data, server) = server();
    let mut schemathesis = tools::python("schemathesis");
    schemathesis.arg("--config-file").arg(format!("{FOLDER}/schemathesis.toml"));
    schemathesis.env("SCHEMATHESIS_HOOKS", format!("{FOLDER}/hooks.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    schemathesis.args(["--no-color", "run", &format!("http://{}/openapi.json", server.address)]);
    schemathesis.current_dir(data.path());
    let report = assert_finds_nothing(schemathesis);
    assert!(report.contains("Tested: 4") && report.contains("No issues found"), "{report}");
    let ledger: Vec<Value> = get(&server, "/ledger").await.json().await.expect("JSON");
    assert!(ledger.iter().any(|line| line["user"] == "card network"), "the hook signs events that are accepted");
    let log = std::fs::read_to_string(data.path().join(LOG)).expect("a log");
    assert!(log.contains("a guarded request has ended") && !log.contains("ERROR"), "{log}");
}
