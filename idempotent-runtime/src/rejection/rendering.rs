//! Rejections as responses: problem details (RFC 9457), or text for a client that accepts no JSON.

use axum::response::{IntoResponse, Response};
use http::header;
use serde::Serialize;

use crate::rejection::problem::Rejection;

#[derive(Serialize)]
struct Problem {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_status: Option<u16>,
}

impl Rejection {
    /// Renders the rejection, with problem types under this base.
    pub(crate) fn render(&self, problem_types: Option<&str>, accepts_json: bool) -> Response {
        let problem = Problem {
            r#type: self.problem_type_in(problem_types),
            title: self.title(),
            status: self.status().as_u16(),
            detail: self.detail(),
            code: self.code(),
            original_status: match self {
                Self::ResponseNotRecorded { status } => Some(status.as_u16()),
                _ => None,
            },
        };
        let (media_type, body) = if accepts_json {
            ("application/problem+json", serde_json::to_vec(&problem).expect("strings and numbers serialise"))
        } else {
            ("text/plain; charset=utf-8", problem.to_text().into_bytes())
        };
        let mut response = (self.status(), [(header::CONTENT_TYPE, media_type)], body).into_response();
        if let Some(seconds) = self.retry_after_seconds() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl Problem {
    fn to_text(&self) -> String {
        let Self { title, detail, code, r#type, .. } = self;
        format!("{title}\n\n{detail}\n\ncode: {code}\ntype: {type}\n")
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        self.render(None, true)
    }
}
