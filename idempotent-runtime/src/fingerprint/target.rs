//! Where a request goes: method, authority, path and query.

use std::borrow::Cow;
use std::iter::once;

use axum::RequestExt as _;
use axum::extract::{NestedPath, OriginalUri, RawPathParams, Request};
use futures_util::FutureExt as _;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri, header};
use percent_encoding::percent_decode_str;

use crate::fingerprint::builder::PartDigest;
use crate::fingerprint::builder::{Piece, Pieces};

/// Both the URI that was routed and the one with which the request came in count. A middleware that rewrites the path may have
/// taken a tenant out of it, which only the first one tells; a forwarded request has a stale first one, and differs from others of
/// its sender by the second.
pub(crate) fn digest_of_target(request: &mut Request, counts_query: bool) -> PartDigest {
    let uri = request.uri();
    let original = request.extensions().get().map_or(uri, |OriginalUri(original)| original);
    let is_rewritten = !is_same_path(uri.path(), original.path());
    let mut pieces = Pieces::new();
    pieces.piece(Piece::Method, request.method().as_str().as_bytes());
    authority(&mut pieces, [uri, original], request.headers());
    pieces.piece(Piece::Path, uri.path().as_bytes());
    if is_rewritten {
        segments(original.path()).for_each(|segment| pieces.piece(Piece::OriginalPath, segment.as_bytes()));
    }
    if counts_query {
        query(&mut pieces, [uri, original]);
    }
    // Always where routers are nested: a stale original may look like a genuine one.
    if is_rewritten || request.extensions().get::<NestedPath>().is_some() {
        stripped(&mut pieces, request);
    }
    pieces.finish()
}

/// The authority is its host in lower case, without the port: processes of one service may listen on different ports, and a
/// retry may reach any of them.
fn authority(pieces: &mut Pieces, [uri, original]: [&Uri; 2], headers: &HeaderMap) {
    let hosts = || headers.get_all(header::HOST).iter().map(host_of);
    // What the request's first line names is what the request is for, whatever the header says (RFC 9112, section 3.2.2).
    let [host, first] = [uri.authority().or(original.authority()), original.authority()]
        .map(|authority| authority.map(|authority| authority.host().as_bytes()));
    let Some(host) = host else {
        return hosts().for_each(|line| pieces.in_lower_case(Piece::Authority, &line));
    };
    pieces.in_lower_case(Piece::Authority, host);
    // But a handler may read the header: where it names another host, that counts too. HTTP/2 has the authority in its place.
    let first = first.filter(|first| !hosts().any(|line| line.eq_ignore_ascii_case(first)));
    for other in first.map(Cow::Borrowed).into_iter().chain(hosts()) {
        if !other.eq_ignore_ascii_case(host) {
            pieces.in_lower_case(Piece::OtherHost, &other);
        }
    }
}

fn query(pieces: &mut Pieces, [uri, original]: [&Uri; 2]) {
    if let Some(query) = uri.query() {
        pieces.piece(Piece::Query, query.as_bytes());
    }
    if !is_same_query(uri.query(), original.query()) {
        pieces.piece(Piece::OriginalQuery, original.query().unwrap_or_default().as_bytes());
    }
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

/// Whether one is only another spelling of the other, as a middleware that normalises paths makes it: a retry may have either.
fn is_same_path(routed: &str, original: &str) -> bool {
    let normal = |path| segments(path).flat_map(|segment| once(b'/').chain(percent_decode_str(segment)));
    let lower = |byte: u8| byte.to_ascii_lowercase();
    routed == original || normal(routed).map(lower).eq(normal(original).map(lower))
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// Whether both have the same parameters, in whatever order.
fn is_same_query(routed: Option<&str>, original: Option<&str>) -> bool {
    let parameters = |query: Option<&str>| {
        let parameters = query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty());
        let mut parameters: Vec<_> = parameters.map(str::to_owned).collect();
        parameters.sort_unstable();
        parameters
    };
    routed == original || parameters(routed) == parameters(original)
}
