//! What a rejection is rendered for: the request that gets it, and what its client reads.

use std::fmt;
use std::sync::Arc;

use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri, header};

use crate::rejection::problem::Rejection;

/// The head of a request that is rejected, for [`render_rejections`](crate::RegistryBuilder::render_rejections): what its client
/// accepts, its languages, a header to echo.
///
/// It is the head that the handler's arguments see: a router in which the handler's one is nested has taken its prefix from the URI.
/// The headers hold whatever the client sent, credentials too.
///
/// # Examples
///
/// ```
/// use axum::extract::Request;
/// use idempotent_runtime::{RejectedRequest, Rejection, rejection};
///
/// // As in a unit test of a renderer.
/// let request = Request::post("/charges").header("accept-language", "fr").body(()).unwrap();
/// let request = RejectedRequest::from(&request);
/// assert_eq!(request.headers()["accept-language"], "fr");
/// assert_eq!(rejection::stripe(Rejection::KeyReused, &request).status(), 400);
/// ```
#[derive(Clone, Default)]
pub struct RejectedRequest {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    problem_types: Option<Arc<str>>,
}

impl RejectedRequest {
    /// Its method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Its target.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The `type` of the rejection: [`Rejection::problem_type`], or what
    /// [`problem_types`](crate::RegistryBuilder::problem_types) makes of it.
    pub fn problem_type(&self, rejection: &Rejection) -> String {
        rejection.problem_type_in(self.problem_types.as_deref())
    }

    /// The answer without a renderer, for what a renderer leaves alone: problem details, or `text/plain` if the client accepts no
    /// JSON.
    ///
    /// ```
    /// use axum::http::header::ACCEPT_LANGUAGE;
    /// use axum::response::IntoResponse;
    /// use idempotent_runtime::{Registry, Rejection, store::MemoryStore};
    ///
    /// let registry = Registry::builder(MemoryStore::new())
    ///     .render_rejections(|rejection, request| match rejection {
    ///         Rejection::InFlight { .. } if request.headers().get(ACCEPT_LANGUAGE).is_some_and(|language| language == "fr") => {
    ///             (rejection.status(), "La première requête est en cours.").into_response()
    ///         }
    ///         rejection => request.problem(&rejection),
    ///     })
    ///     .build();
    /// ```
    pub fn problem(&self, rejection: &Rejection) -> Response {
        rejection.render(self.problem_types.as_deref(), accepts_json(&self.headers))
    }
}

impl<B> From<&Request<B>> for RejectedRequest {
    fn from(request: &Request<B>) -> Self {
        let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        Self { method, uri, headers, problem_types: None }
    }
}

impl From<&Parts> for RejectedRequest {
    fn from(head: &Parts) -> Self {
        let Parts { method, uri, headers, .. } = head;
        Self { method: method.clone(), uri: uri.clone(), headers: headers.clone(), problem_types: None }
    }
}

/// Without the target and the headers, which can hold keys and credentials.
impl fmt::Debug for RejectedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectedRequest").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What a guard keeps of a request for the case that it is rejected.
#[derive(Clone, Debug)]
pub(crate) struct Audience {
    accepts_json: bool,
    /// Only if a renderer wants it: the head is copied.
    request: Option<Arc<RejectedRequest>>,
}

impl Default for Audience {
    fn default() -> Self {
        Self { accepts_json: true, request: None }
    }
}

impl Audience {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self { accepts_json: accepts_json(headers), request: None }
    }

    /// The same for a registry that has a renderer, which decides what it makes of `Accept`.
    pub(crate) fn with_head(request: RejectedRequest, problem_types: Option<Arc<str>>) -> Self {
        Self { accepts_json: true, request: Some(Arc::new(RejectedRequest { problem_types, ..request })) }
    }

    pub(crate) fn accepts_json(&self) -> bool {
        self.accepts_json
    }

    pub(crate) fn request(&self) -> Option<&RejectedRequest> {
        self.request.as_deref()
    }
}

/// Whether the client takes problem details, or does not say what it takes.
fn accepts_json(headers: &HeaderMap) -> bool {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(|range| String::from_utf8_lossy(range).to_ascii_lowercase())
        .filter(|range| !range.trim().is_empty())
        .peekable();
    ranges.peek().is_none() || ranges.any(|range| is_json(&range))
}

/// Whether JSON is in this media range of `Accept` (RFC 9110, section 12.5.1), and not excluded by its weight.
fn is_json(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let is_excluded =
        parts.filter_map(|parameter| parameter.strip_prefix("q=")).any(|weight| weight.parse() == Ok(0.0_f32));
    let is_json = matches!(media_type, "*/*" | "application/*" | "application/json")
        || (media_type.starts_with("application/") && media_type.ends_with("+json"));
    is_json && !is_excluded
}
