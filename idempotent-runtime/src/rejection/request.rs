//! The request that is rejected, and the formats that its client accepts.

use std::fmt;
use std::sync::Arc;

use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri, header};

use crate::rejection::problem::Rejection;

/// The head of a rejected request, for [`render_rejections`](crate::RegistryBuilder::render_rejections). A renderer can
/// read from the head what the client accepts, the client's languages, or a header to echo.
///
/// The head is the one that the handler's arguments see: if the handler's router is nested, the router's prefix is
/// removed from the URI. The headers contain everything that the client sent, including credentials.
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
    /// Returns the method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the URI.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the `type` of the rejection: [`Rejection::problem_type`], or the address under
    /// [`problem_types`](crate::RegistryBuilder::problem_types).
    pub fn problem_type(&self, rejection: &Rejection) -> String {
        rejection.problem_type_in(self.problem_types.as_deref())
    }

    /// Returns the default answer, for rejections that a renderer does not change: problem details, or `text/plain` if
    /// the client does not accept JSON.
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

/// Shows neither the URI nor the headers, because they can contain keys and credentials.
impl fmt::Debug for RejectedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectedRequest").field("method", &self.method).finish_non_exhaustive()
    }
}

/// The data of a request that a guard keeps, in case the request is rejected.
#[derive(Clone, Debug)]
pub(crate) struct Audience {
    accepts_json: bool,
    /// Only for a renderer, because the head is copied.
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

    /// Creates the audience for a registry with a renderer. The renderer itself evaluates `Accept`.
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

/// Returns whether the client accepts problem details, or does not say what it accepts. This function runs for every
/// request, so it allocates nothing.
fn accepts_json(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::ACCEPT).into_iter();
    match (lines.next(), lines.next()) {
        (None, _) => return true,
        (Some(only), None) if only == "*/*" || only == "application/json" => return true,
        _ => {}
    }
    let ranges = || {
        let lines = headers.get_all(header::ACCEPT).into_iter();
        let ranges = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(media_range);
        ranges.filter(|(range, _)| !range.is_empty())
    };
    // The most specific range decides (RFC 9110, section 12.5.1).
    let accepts = |media_type: &str| {
        let of = |wanted: &str| ranges().find(|(range, _)| range.eq_ignore_ascii_case(wanted.as_bytes()));
        of(media_type).or_else(|| of("application/*")).or_else(|| of("*/*")).is_some_and(|(_, is_accepted)| is_accepted)
    };
    ranges().next().is_none()
        || ["application/problem+json", "application/json"].into_iter().any(accepts)
        || ranges().any(|(range, is_accepted)| is_accepted && is_some_json(range))
}

/// Returns whether this is the name of a JSON format, such as `application/vnd.api+json`.
fn is_some_json(range: &[u8]) -> bool {
    let (begin, end) = (b"application/", b"+json");
    let is = |part: Option<&[u8]>, wanted: &[u8]| part.is_some_and(|part| part.eq_ignore_ascii_case(wanted));
    is(range.get(..begin.len()), begin) && is(range.len().checked_sub(end.len()).and_then(|at| range.get(at..)), end)
}

/// Returns the range without its parameters, and whether its weight is not 0.
fn media_range(text: &[u8]) -> (&[u8], bool) {
    let mut parts = text.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let range = parts.next().unwrap_or_default();
    let weight = |parameter: &[u8]| -> Option<f32> {
        let value = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?;
        str::from_utf8(value).ok()?.parse().ok()
    };
    (range, !parts.filter_map(weight).any(|weight| weight == 0.0))
}
