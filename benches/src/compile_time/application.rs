//! The sources of a web application with a hundred handlers, plain or annotated.

use std::fmt::Write as _;
use std::path::Path;

/// The kind of the handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain handlers of axum.
    Plain,
    /// With `#[idempotent]` on each.
    Annotated,
}

impl Kind {
    /// All kinds, in the order of the columns.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Annotated];
}

/// The resources. Each has its own file, as in an application of this size.
const RESOURCES: [&str; 10] =
    ["charge", "refund", "payout", "invoice", "order", "shipment", "customer", "coupon", "dispute", "transfer"];

const ACTIONS: [&str; 10] =
    ["create", "confirm", "capture", "cancel", "amend", "approve", "reject", "archive", "restore", "assign"];

/// The number of handlers.
pub const HANDLERS: usize = RESOURCES.len() * ACTIONS.len();

/// The files with their paths.
pub fn files(kind: Kind, runtime: &Path) -> Vec<(String, String)> {
    let files = [
        ("Cargo.toml".to_owned(), manifest(kind, runtime)),
        ("src/main.rs".to_owned(), main(kind)),
        ("src/error.rs".to_owned(), ERROR.to_owned()),
        ("src/ledger.rs".to_owned(), LEDGER.to_owned()),
    ];
    let modules = RESOURCES.iter().map(|resource| (format!("src/{resource}.rs"), module(kind, resource, 0)));
    files.into_iter().chain(modules).collect()
}

/// One of the files after a change in the body of one handler. Each `edit` gives a different file.
pub fn edited(kind: Kind, edit: usize) -> (String, String) {
    let resource = RESOURCES[RESOURCES.len() / 2];
    (format!("src/{resource}.rs"), module(kind, resource, edit))
}

/// The name of the package.
pub fn package(kind: Kind) -> &'static str {
    match kind {
        Kind::Plain => "plain",
        Kind::Annotated => "annotated",
    }
}

fn manifest(kind: Kind, runtime: &Path) -> String {
    let ours = match kind {
        Kind::Plain => String::new(),
        Kind::Annotated => format!("idempotent-runtime = {{ path = {runtime:?}, features = [\"memory\"] }}\n"),
    };
    format!(
        r#"[package]
name = "{}"
version = "0.0.0"
edition = "2024"

[dependencies]
axum = "0.8"
{ours}serde = {{ version = "1", features = ["derive"] }}
tokio = {{ version = "1", features = ["macros", "net", "rt-multi-thread", "sync"] }}

[profile.release]
strip = "symbols"

[workspace]
"#,
        package(kind)
    )
}

fn main(kind: Kind) -> String {
    let mut text = String::from("mod error;\nmod ledger;\n");
    for resource in RESOURCES {
        let _ = writeln!(text, "mod {resource};");
    }
    let install = match kind {
        Kind::Plain => "",
        Kind::Annotated => {
            "idempotent_runtime::install(idempotent_runtime::store::MemoryStore::new()).expect(\"it is the first\");\n    "
        }
    };
    let _ = write!(
        text,
        "\n#[tokio::main]\nasync fn main() -> std::io::Result<()> {{\n    {install}let app = axum::Router::new()"
    );
    for resource in RESOURCES {
        let _ = write!(text, "\n        .merge({resource}::router())");
    }
    text.push_str(
        "\n        .with_state(ledger::Ledger::default());
    axum::serve(tokio::net::TcpListener::bind(\"127.0.0.1:0\").await?, app).await
}
",
    );
    text
}

fn module(kind: Kind, resource: &str, edit: usize) -> String {
    let types = type_name(resource);
    let import = match kind {
        Kind::Plain => "",
        Kind::Annotated => "use idempotent_runtime::idempotent;\n",
    };
    let mut text = format!(
        "use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{{Json, Router}};
{import}use serde::{{Deserialize, Serialize}};

use crate::error::ApiError;
use crate::ledger::Ledger;

pub fn router() -> Router<Ledger> {{
    Router::new()"
    );
    for action in ACTIONS {
        let _ = write!(text, "\n        .route(\"/{resource}s/{action}\", post({action}))");
    }
    text.push_str("\n}\n");
    for (number, action) in ACTIONS.iter().enumerate() {
        let (input, output) = (format!("{}{types}", type_name(action)), format!("{types}After{}", type_name(action)));
        let attribute = match kind {
            Kind::Plain => String::new(),
            Kind::Annotated => format!("#[idempotent(scope = \"{resource}s-{action}\", cache = [201, 409])]\n"),
        };
        let fee = if number == ACTIONS.len() / 2 { edit } else { number };
        let _ = write!(
            text,
            r#"
#[derive(Debug, Deserialize)]
pub struct {input} {{
    account: String,
    amount: u64,
    currency: String,
    note: Option<String>,
}}

#[derive(Debug, Serialize)]
pub struct {output} {{
    id: u64,
    account: String,
    amount: u64,
    balance: u64,
    note: Option<String>,
}}
"#
        );
        let _ = write!(
            text,
            r#"
{attribute}async fn {action}(
    State(ledger): State<Ledger>,
    Json(input): Json<{input}>,
) -> Result<(StatusCode, Json<{output}>), ApiError> {{
    if input.amount == 0 {{
        return Err(ApiError::Invalid("an amount is more than nothing"));
    }}
    let fee = ledger.fee(&input.currency).await? + {fee};
    let balance = ledger.withdraw(&input.account, input.amount + fee).await?;
    let id = ledger.enter("{resource}", "{action}", input.amount).await;
    let output = {output} {{ id, account: input.account, amount: input.amount, balance, note: input.note }};
    Ok((StatusCode::CREATED, Json(output)))
}}
"#
        );
    }
    text
}

fn type_name(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

const ERROR: &str = r#"use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

pub enum ApiError {
    Invalid(&'static str),
    UnknownCurrency(String),
    Overdrawn { account: String, missing: u64 },
}

#[derive(Serialize)]
struct Problem {
    title: &'static str,
    detail: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, title, detail) = match self {
            Self::Invalid(reason) => (StatusCode::BAD_REQUEST, "Invalid", reason.to_owned()),
            Self::UnknownCurrency(name) => (StatusCode::BAD_REQUEST, "Unknown currency", name),
            Self::Overdrawn { account, missing } => {
                (StatusCode::CONFLICT, "Overdrawn", format!("{account} misses {missing}"))
            }
        };
        (status, Json(Problem { title, detail })).into_response()
    }
}
"#;

const LEDGER: &str = r#"use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::error::ApiError;

#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    balances: HashMap<String, u64>,
    entries: Vec<(&'static str, &'static str, u64)>,
}

impl Ledger {
    pub async fn fee(&self, currency: &str) -> Result<u64, ApiError> {
        match currency {
            "eur" => Ok(1),
            "usd" => Ok(2),
            unknown => Err(ApiError::UnknownCurrency(unknown.to_owned())),
        }
    }

    pub async fn withdraw(&self, account: &str, amount: u64) -> Result<u64, ApiError> {
        let mut books = self.0.lock().await;
        let balance = books.balances.entry(account.to_owned()).or_insert(1_000_000);
        match balance.checked_sub(amount) {
            Some(left) => {
                *balance = left;
                Ok(left)
            }
            None => Err(ApiError::Overdrawn { account: account.to_owned(), missing: amount - *balance }),
        }
    }

    pub async fn enter(&self, resource: &'static str, action: &'static str, amount: u64) -> u64 {
        let mut books = self.0.lock().await;
        books.entries.push((resource, action, amount));
        books.entries.len() as u64
    }
}
"#;
