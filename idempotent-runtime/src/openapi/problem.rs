//! The schema of rejections: in each response, or as one component of the document.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::rejection::problem::{CODES, Rejection};

/// The media type of rejections.
pub(super) const PROBLEM: &str = "application/problem+json";

/// The name of the component, and the title of the schema in a response.
pub(super) const COMPONENT: &str = "IdempotencyProblem";

/// How a response describes its rejections.
#[derive(Clone, Copy)]
pub(super) enum ProblemSchema {
    /// The response contains the whole schema.
    Inline,
    /// The response contains a reference to [`COMPONENT`], and its own statuses and codes.
    #[cfg_attr(not(feature = "aide"), allow(dead_code, reason = "utoipa moves the schema there later"))]
    Component,
}

impl ProblemSchema {
    /// Returns the schema of these rejections, all of which have this status.
    pub(super) fn of(self, status: StatusCode, rejections: &[Rejection]) -> Value {
        let codes: Vec<&str> = rejections.iter().map(Rejection::code).collect();
        let (status, codes) = (json!([status.as_u16()]), json!(codes));
        match self {
            Self::Component => reference(&status, &codes),
            Self::Inline => {
                let of_another = |rejection: &Rejection| matches!(rejection, Rejection::ResponseNotRecorded { .. });
                problem(Some(&status), &codes, rejections.iter().any(of_another))
            }
        }
    }
}

/// Returns the component, which covers every rejection.
pub(super) fn component() -> Value {
    problem(None, &json!(CODES), true)
}

/// Returns a reference to the component, for a response of these statuses and codes.
pub(super) fn reference(statuses: &Value, codes: &Value) -> Value {
    let properties = json!({
        "status": { "type": "integer", "enum": statuses },
        "code": { "type": "string", "enum": codes },
    });
    json!({
        "allOf": [
            { "$ref": format!("#/components/schemas/{COMPONENT}") },
            { "type": "object", "properties": properties },
        ],
    })
}

fn problem(statuses: Option<&Value>, codes: &Value, has_original_status: bool) -> Value {
    let mut status = json!({ "type": "integer", "description": "The status of the response." });
    if let Some(statuses) = statuses {
        status["enum"] = statuses.clone();
    }
    let mut properties = Map::from_iter([
        (
            "type".to_owned(),
            json!({ "type": "string", "format": "uri", "description": "Where the problem is documented." }),
        ),
        ("title".to_owned(), json!({ "type": "string", "description": "What the problem is, for people." })),
        ("status".to_owned(), status),
        (
            "detail".to_owned(),
            json!({ "type": "string", "description": "What happened to this request, and what to do." }),
        ),
        (
            "code".to_owned(),
            json!({ "type": "string", "enum": codes, "description": "What the problem is, for programs." }),
        ),
    ]);
    let required: Vec<String> = properties.keys().cloned().collect();
    if has_original_status {
        let original = json!({ "type": "integer", "description": "The status of the response that was not recorded." });
        properties.insert("original_status".to_owned(), original);
    }
    json!({
        "title": COMPONENT,
        "description": "Problem details (RFC 9457).",
        "type": "object",
        "required": required,
        "properties": properties,
    })
}
