//! What a policy adds to its operation, as objects of OpenAPI 3.1. Used for every framework.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::idempotency_key::{IdempotencyKey, InvalidKey};
use crate::openapi::problem::{PROBLEM, ProblemSchema};
use crate::openapi::recorded::Recorded;
use crate::policy::Policy;
use crate::policy::values::{
    AfterCrash, FingerprintSource, InFlight, InvalidKeyPolicy, KeyFormat, KeySource, Oversize,
};
use crate::registry::Registry;
use crate::rejection::problem::Rejection;

/// The name of the extension that describes the guard of an operation.
pub(super) const EXTENSION: &str = "x-idempotency";

/// The pattern of what [`IdempotencyKey::from_header`] accepts: a bare key, or a String of RFC 9651 that is not blank.
/// To state both conditions with the length would need a look-ahead, which some validators do not support. So a String
/// must not begin with a space here.
fn key_pattern(min_length: usize) -> String {
    let (max, least_more) = (IdempotencyKey::MAX_LENGTH, min_length - 1);
    let most_more = max - 1;
    format!(
        r#"^(?:[!#-+\--:<-\[\]-~]{{{min_length},{max}}}|"(?:[!#-\[\]-~]|\\["\\])(?:[ !#-\[\]-~]|\\["\\]){{{least_more},{most_more}}}")$"#
    )
}

/// A UUID in quotes. The format `uuid` does not allow the quotes.
const QUOTED_UUID: &str = r#"^"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"$"#;

/// The longest value of the header: two quotes, and an escape before each character.
const LONGEST_VALUE: usize = 2 * IdempotencyKey::MAX_LENGTH + 2;

/// What a policy adds to its operation.
pub(super) struct Description {
    /// The name of the header that carries the key, and its Parameter Object.
    pub(super) key: Option<(String, Value)>,
    /// The Response Object of each status.
    pub(super) rejections: BTreeMap<u16, Value>,
    pub(super) recorded: Recorded,
    /// The value of [`EXTENSION`].
    pub(super) extension: Value,
}

impl Description {
    /// `only` names the methods that the policy guards, if the operation has others too: there, a key is optional.
    pub(super) fn new(policy: &Policy, only: Option<&[&str]>, schema: ProblemSchema) -> Self {
        let registry = Registry::installed();
        let policy = registry.as_ref().map_or(policy, |registry| registry.overrides().over(policy));
        let required = policy.required() && only.is_none();
        let recorded = Recorded::by(policy.cache());
        let mut extension = json!({
            "scope": policy.scope(),
            "ttl": readable(policy.ttl()),
            "ttl_seconds": policy.ttl().as_secs(),
            "statuses": recorded.to_json(),
            "required": required,
            "in_flight": match policy.in_flight() {
                InFlight::Reject => "reject".to_owned(),
                InFlight::Wait(limit) => format!("wait {}", readable(limit)),
            },
            "after_crash": match policy.after_crash() {
                AfterCrash::Rerun => "rerun",
                AfterCrash::Reject => "reject",
            },
        });
        if let Some(methods) = only {
            extension["methods"] = json!(methods);
        }
        let key = (policy.key() == KeySource::Header).then(|| {
            extension["header"] = json!(policy.header());
            (policy.header().to_owned(), key_parameter(policy, required, only))
        });
        let mut by_status = BTreeMap::<StatusCode, Vec<Rejection>>::new();
        for rejection in rejections(policy, registry.as_ref()) {
            by_status.entry(rejection.status()).or_default().push(rejection);
        }
        let is_rendered = registry.is_some_and(|registry| registry.renders_rejections());
        let rejections = by_status
            .into_iter()
            .map(|(status, rejections)| {
                let schema = (!is_rendered).then(|| schema.of(status, &rejections));
                (status.as_u16(), response(&rejections, schema, only))
            })
            .collect();
        Self { key, rejections, recorded, extension }
    }
}

/// The Header Object of `idempotent-replayed`.
pub(super) fn replay_header() -> Value {
    json!({
        "description": "Present on a replay: this is the recorded response of the first request with the same key.",
        "schema": { "type": "string", "enum": ["true"] },
    })
}

fn key_parameter(policy: &Policy, required: bool, only: Option<&[&str]>) -> Value {
    let kept = readable(policy.ttl());
    let without = if required { "" } else { " A request without a key is not guarded." };
    let only = only_of(only);
    json!({
        "name": policy.header(),
        "in": "header",
        "required": required,
        "description": format!(
            "Unique to this operation, and the same on every retry of it: a retry gets the response of the first request, which is kept for {kept}. Bare, or quoted as a String of RFC 9651.{without}{only}"
        ),
        "schema": key_schema(policy),
    })
}

fn key_schema(policy: &Policy) -> Value {
    match policy.key_format() {
        KeyFormat::Any => json!({
            "type": "string",
            "minLength": policy.min_key_length(),
            "maxLength": LONGEST_VALUE,
            "pattern": key_pattern(policy.min_key_length()),
        }),
        KeyFormat::Uuid => json!({
            "anyOf": [
                { "type": "string", "format": "uuid" },
                { "type": "string", "pattern": QUOTED_UUID },
            ],
        }),
    }
}

/// The rejections that clients of this handler may get.
fn rejections(policy: &Policy, registry: Option<&Registry>) -> Vec<Rejection> {
    let retry_after = Duration::ZERO;
    let has_claim = policy.database().is_none();
    let mut rejections = vec![
        Rejection::InFlight { retry_after, may_have_run: false },
        Rejection::StoreUnavailable { retry_after, may_have_run: false },
    ];
    if policy.required() {
        rejections.push(Rejection::MissingKey { header: None });
    }
    if policy.invalid_key() == InvalidKeyPolicy::Reject {
        let (min_length, format) = (policy.min_key_length(), policy.key_format());
        rejections.push(Rejection::InvalidKey { reason: InvalidKey::Empty, min_length, format });
    }
    if policy.fingerprint() != FingerprintSource::None {
        rejections.push(Rejection::KeyReused);
    }
    if matches!(policy.in_flight(), InFlight::Wait(_)) {
        rejections.push(Rejection::NotRecorded { retry_after });
    }
    // The function of a registry may return no caller for a request.
    if !policy.partitioned_by_caller() {
        rejections.push(Rejection::OtherCredentials);
    }
    // A transaction leaves nothing behind after a crash, and has no lease that could be lost.
    if has_claim {
        rejections.push(Rejection::ClaimLost { retry_after });
    }
    if has_claim && !policy.after_crash().may_rerun() {
        rejections.push(Rejection::OutcomeUnknown);
    }
    // Transactions of SQLite wait for each other instead of conflicting.
    if policy.database() == Some("PostgreSQL") {
        rejections.push(Rejection::TransactionConflict);
    }
    // A handler with a claim may take steps: the policy does not say whether it does.
    rejections.push(if has_claim { Rejection::StepFailed } else { Rejection::TransactionFailed });
    if matches!(policy.fingerprint(), FingerprintSource::Expression | FingerprintSource::Only) {
        rejections.push(Rejection::FingerprintFailed);
    }
    if policy.oversize() == Oversize::Reject {
        rejections.push(Rejection::ResponseNotRecorded { status: StatusCode::OK });
    }
    rejections.push(Rejection::TooManyInFlight { retry_after, of_caller: false });
    if registry.is_some_and(|registry| registry.caller_limit().is_some()) {
        rejections.push(Rejection::TooManyInFlight { retry_after, of_caller: true });
    }
    rejections
}

/// The addition to a description if one operation describes guarded and unguarded methods.
fn only_of(methods: Option<&[&str]>) -> String {
    methods.map_or_else(String::new, |methods| format!(" Only for {}.", methods.join(", ")))
}

fn response(rejections: &[Rejection], schema: Option<Value>, only: Option<&[&str]>) -> Value {
    let titles: Vec<&str> = rejections.iter().map(Rejection::title).collect();
    let mut response = json!({ "description": format!("{}.{}", titles.join(". "), only_of(only)) });
    if rejections.iter().any(|rejection| rejection.retry_after().is_some()) {
        let seconds = json!({ "type": "integer", "minimum": 0 });
        response["headers"] =
            json!({ "Retry-After": { "description": "When to ask again, in seconds.", "schema": seconds } });
    }
    if let Some(schema) = schema {
        response["content"] = json!({ PROBLEM: { "schema": schema } });
    }
    response
}

/// In the format of the attribute, such as `24h` or `1h30m`.
fn readable(duration: Duration) -> String {
    const HOUR: u64 = 60 * 60;
    let seconds = duration.as_secs();
    if duration.subsec_nanos() == 0 && seconds >= HOUR && seconds.is_multiple_of(HOUR) {
        return format!("{}h", seconds / HOUR);
    }
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// Converts the value to the type of the crate that makes the document.
pub(super) fn object<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("it is an object of OpenAPI 3.1")
}
