//! Where a request goes: method, authority, path and query.

use std::borrow::Cow;

use axum::RequestExt as _;
use axum::extract::{NestedPath, OriginalUri, RawPathParams, Request};
use futures_util::FutureExt as _;
use http::uri::Authority;
use http::{HeaderValue, Uri, header};

use crate::fingerprint::builder::PartDigest;
use crate::fingerprint::builder::{Piece, Pieces};

/// The authority is its host in lower case, without the port: processes of one service may listen on different ports, and a
/// retry may reach any of them.
pub(crate) fn digest_of_target(request: &mut Request, counts_query: bool) -> PartDigest {
    let uri = request.uri();
    let mut pieces = Pieces::new();
    pieces.piece(Piece::Method, request.method().as_str().as_bytes());
    let hosts = request.headers().get_all(header::HOST).iter();
    match uri.authority() {
        // What the request's first line names is what the request is for, whatever the header says (RFC 9112, section 3.2.2).
        // But a handler may read the header: where it names another host, that counts too.
        Some(authority) => {
            pieces.in_lower_case(Piece::Authority, authority.host().as_bytes());
            for line in hosts.filter(|line| !host_of(line).eq_ignore_ascii_case(authority.host().as_bytes())) {
                pieces.in_lower_case(Piece::OtherHost, &host_of(line));
            }
        }
        None => hosts.for_each(|line| pieces.in_lower_case(Piece::Authority, &host_of(line))),
    }
    pieces.piece(Piece::Path, uri.path().as_bytes());
    let original = request.extensions().get().map(|OriginalUri(original)| original);
    let is_forwarded = original.is_some_and(|original| !is_nested_in(uri, original));
    if let Some(original) = original.filter(|original| !is_forwarded && original.path() != uri.path()) {
        pieces.piece(Piece::OriginalPath, original.path().as_bytes());
    }
    if let Some(query) = uri.query().filter(|_| counts_query) {
        pieces.piece(Piece::Query, query.as_bytes());
    }
    // Always where routers are nested: a stale original may look like a genuine one.
    if is_forwarded || request.extensions().get::<NestedPath>().is_some() {
        stripped(&mut pieces, request);
    }
    pieces.finish()
}

/// What nested routers may have stripped of a request that was forwarded with another URI: the original one tells nothing.
fn stripped(pieces: &mut Pieces, request: &mut Request) {
    if let Some(nested) = request.extensions().get::<NestedPath>() {
        pieces.piece(Piece::NestedPath, nested.as_str().as_bytes());
    }
    // They are in the extensions, so that there is nothing to wait for.
    if let Some(Ok(parameters)) = request.extract_parts::<RawPathParams>().now_or_never() {
        for (name, value) in &parameters {
            pieces.piece(Piece::PathParameter, name.as_bytes());
            pieces.piece(Piece::PathParameter, value.as_bytes());
        }
    }
}

/// Without its port; the whole line where it is no authority.
fn host_of(line: &HeaderValue) -> Cow<'_, [u8]> {
    match Authority::try_from(line.as_bytes()) {
        Ok(authority) => Cow::Owned(authority.host().as_bytes().to_vec()),
        Err(_) => Cow::Borrowed(line.as_bytes()),
    }
}

/// Whether `original` can be what nested routers have made `routed` of: they strip whole segments from its start.
fn is_nested_in(routed: &Uri, original: &Uri) -> bool {
    let path = routed.path();
    original.query() == routed.query() && (path == "/" || path.starts_with('/') && original.path().ends_with(path))
}
