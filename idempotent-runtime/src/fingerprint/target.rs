//! Where a request goes: method, authority, path and query.

use axum::extract::{MatchedPath, OriginalUri, Request};
use http::uri::Authority;
use http::{HeaderValue, Uri, header};

use super::builder::{Piece, Pieces};
use super::PartDigest;

/// The authority is its host in lower case, without the port: processes of one service may listen on different ports, and a
/// retry may reach any of them.
pub(crate) fn digest_of_target(request: &Request, counts_query: bool) -> PartDigest {
    let uri = request.uri();
    let mut pieces = Pieces::new();
    pieces.piece(Piece::Method, request.method().as_str().as_bytes());
    // The form of the request's first line goes before the header (RFC 9112, section 3.2.2).
    match uri.authority() {
        Some(authority) => pieces.in_lower_case(Piece::Authority, authority.host().as_bytes()),
        None => request.headers().get_all(header::HOST).iter().for_each(|line| host(&mut pieces, line)),
    }
    pieces.piece(Piece::Path, uri.path().as_bytes());
    match request.extensions().get() {
        Some(OriginalUri(original)) if is_nested_in(uri, original) => {
            if original.path() != uri.path() {
                pieces.piece(Piece::OriginalPath, original.path().as_bytes());
            }
        }
        // The request was forwarded with another URI. What a router has stripped of that since, only its own path tells.
        Some(OriginalUri(_)) => {
            if let Some(matched) = request.extensions().get::<MatchedPath>() {
                pieces.piece(Piece::MatchedPath, matched.as_str().as_bytes());
            }
        }
        None => {}
    }
    if let Some(query) = uri.query().filter(|_| counts_query) {
        pieces.piece(Piece::Query, query.as_bytes());
    }
    pieces.finish()
}

fn host(pieces: &mut Pieces, line: &HeaderValue) {
    match Authority::try_from(line.as_bytes()) {
        Ok(authority) => pieces.in_lower_case(Piece::Authority, authority.host().as_bytes()),
        Err(_) => pieces.in_lower_case(Piece::Authority, line.as_bytes()),
    }
}

/// Whether `original` can be what nested routers have made `routed` of: they strip whole segments from its start.
fn is_nested_in(routed: &Uri, original: &Uri) -> bool {
    let path = routed.path();
    original.query() == routed.query() && (path == "/" || path.starts_with('/') && original.path().ends_with(path))
}
