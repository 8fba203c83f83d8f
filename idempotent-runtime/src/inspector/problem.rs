//! The answers to requests that fail: problem details of RFC 9457.

use std::error::Error;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::operate::masking::visible_json;
use crate::store::error::StoreError;

/// A stable code, and a text that says what a correct request contains.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

#[derive(Serialize)]
struct Details<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(super) fn of_store(error: &StoreError) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            detail = format!("{detail}: {error}");
            cause = error.source();
        }
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail)
    }

    /// Returns the outcome for the audit event.
    pub(super) fn outcome(&self) -> String {
        match self.code {
            "not_found" => "nothing_there".to_owned(),
            "store_unavailable" => "failed".to_owned(),
            code => format!("rejected: {code}"),
        }
    }

    pub(super) fn title(&self) -> &'static str {
        self.status.canonical_reason().unwrap_or("Error")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status.as_u16();
        let details =
            Details { r#type: "about:blank", title: self.title(), status, detail: &self.detail, code: self.code };
        let kind = HeaderValue::from_static("application/problem+json");
        let text = serde_json::to_string(&details).expect("names and values are text");
        (self.status, [(header::CONTENT_TYPE, kind)], visible_json(&text)).into_response()
    }
}
