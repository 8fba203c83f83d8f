//! Digests the target of a request: method, authority, path and query.

use std::borrow::Cow;

use axum::RequestExt as _;
use axum::extract::{NestedPath, OriginalUri, RawPathParams, Request};
use futures_util::FutureExt as _;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri, header};
use percent_encoding::percent_decode_str;

use crate::fingerprint::builder::PartDigest;
use crate::fingerprint::builder::{Piece, Pieces};

/// Digests both the URI that was routed and the one with which the request arrived. If a middleware that rewrites the
/// path has removed a tenant from it, only the URI of arrival contains the tenant. In a forwarded request the URI of
/// arrival is stale, and only the routed URI distinguishes it from other requests of its sender.
pub(crate) fn digest_of_target(request: &mut Request, counts_query: bool) -> PartDigest {
    let [uri, original] = uris(request);
    let is_rewritten = !stripped(uri.path(), original.path()).is_some_and(|stripped| stripped.is_empty());
    // If routers are nested, their result always counts, because a stale original URI can be equal to a genuine one.
    let is_routed = is_rewritten || request.extensions().get::<NestedPath>().is_some();
    let routed = if is_routed { Routed::of(request) } else { Routed::default() };
    let [uri, original] = uris(request);
    let mut pieces = Pieces::new();
    pieces.piece(Piece::Method, request.method().as_str().as_bytes());
    authority(&mut pieces, [uri, original], request.headers());
    pieces.piece(Piece::Path, uri.path().as_bytes());
    if is_rewritten {
        original_path(&mut pieces, [uri, original], &routed);
    }
    if counts_query {
        query(&mut pieces, [uri, original]);
    }
    routed.count(&mut pieces);
    pieces.finish()
}

/// Returns the URI that was routed, and the one with which the request arrived.
fn uris(request: &Request) -> [&Uri; 2] {
    let uri = request.uri();
    [uri, request.extensions().get().map_or(uri, |OriginalUri(original)| original)]
}

/// Digests the segments that only the original path has. Differences of spelling in the part that both have do not
/// count: a middleware that normalises paths makes all spellings equal, and a retry may use another spelling.
fn original_path(pieces: &mut Pieces, [uri, original]: [&Uri; 2], routed: &Routed) {
    let mut count = |segment: &str| pieces.piece(Piece::OriginalPath, segment.as_bytes());
    match stripped(uri.path(), original.path()) {
        Some(stripped) if routed.has_stripped(&stripped) => {}
        Some(stripped) => {
            stripped.into_iter().for_each(&mut count);
            // The routed path follows. An empty segment separates the two, because no other segment is empty.
            count("");
        }
        None => segments(original.path()).for_each(count),
    }
}

/// Digests the authority: the host in lower case, without the port. Processes of one service may listen on different
/// ports, and a retry may reach any of them.
fn authority(pieces: &mut Pieces, [uri, original]: [&Uri; 2], headers: &HeaderMap) {
    let hosts = || headers.get_all(header::HOST).iter().map(host_of);
    // The authority in the request's first line takes precedence over the header (RFC 9112, section 3.2.2).
    let [host, first] = [uri.authority().or(original.authority()), original.authority()]
        .map(|authority| authority.map(|authority| authority.host().as_bytes()));
    let Some(host) = host else {
        return hosts().for_each(|line| pieces.in_lower_case(Piece::Authority, &line));
    };
    pieces.in_lower_case(Piece::Authority, host);
    // But a handler may read the header, so another host in the header counts too. HTTP/2 has the authority in place of
    // the header.
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

/// The result of the routers for the path. If a request was forwarded with another URI, its original URI has no
/// meaning.
#[derive(Default)]
struct Routed {
    /// The paths under which the routers are nested, joined.
    nested: Option<NestedPath>,
    parameters: Option<RawPathParams>,
}

impl Routed {
    fn of(request: &mut Request) -> Self {
        let nested = request.extensions().get().cloned();
        // The parameters are in the extensions, so the extractor is ready at once.
        let parameters = request.extract_parts::<RawPathParams>().now_or_never().and_then(Result::ok);
        Self { nested, parameters }
    }

    fn count(&self, pieces: &mut Pieces) {
        if let Some(nested) = &self.nested {
            pieces.piece(Piece::NestedPath, nested.as_str().as_bytes());
        }
        for (name, value) in self.parameters() {
            pieces.piece(Piece::PathParameter, name.as_bytes());
            pieces.piece(Piece::PathParameter, value.as_bytes());
        }
    }

    /// Returns whether nested routers have matched these segments, in any spelling. Then the segments count like the
    /// matched ones.
    fn has_stripped(&self, stripped: &[&str]) -> bool {
        let Some(nested) = &self.nested else { return false };
        let nested: Vec<_> = segments(nested.as_str()).collect();
        let is_match = |(nested, stripped): (&&str, &&str)| {
            let Some(name) = nested.strip_prefix('{').and_then(|name| name.strip_suffix('}')) else {
                return normal(stripped).eq(nested.bytes().map(lower));
            };
            // The values of parameters are decoded.
            self.parameters().any(|(it, value)| it == name && normal(stripped).eq(value.bytes().map(lower)))
        };
        nested.len() == stripped.len() && nested.iter().zip(stripped).all(is_match)
    }

    fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().flatten()
    }
}

/// Returns the host without its port, or the whole line if it is not an authority.
fn host_of(line: &HeaderValue) -> Cow<'_, [u8]> {
    // Most lines are a name or an IPv4 address, with or without a port, and need not be parsed.
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let end = line.as_bytes().iter().position(|byte| !is_of_name(byte)).unwrap_or(line.len());
    let (name, port) = line.as_bytes().split_at(end);
    if let [] | [b':', b'0'..=b'9', ..] = port
        && port.len() <= ":65535".len()
        && port.iter().skip(1).all(u8::is_ascii_digit)
    {
        return Cow::Borrowed(name);
    }
    match Authority::try_from(line.as_bytes()) {
        Ok(authority) => Cow::Owned(authority.host().as_bytes().to_vec()),
        Err(_) => Cow::Borrowed(line.as_bytes()),
    }
}

/// Returns the segments before the routed path, if the original path ends with the routed one in any spelling.
fn stripped<'a>(routed: &str, original: &'a str) -> Option<Vec<&'a str>> {
    if routed == original {
        return Some(Vec::new());
    }
    let (routed, mut original): (Vec<_>, Vec<_>) = (segments(routed).collect(), segments(original).collect());
    let last = original.split_off(original.len().checked_sub(routed.len())?);
    let is_same = routed.iter().zip(last).all(|(routed, original)| normal(routed).eq(normal(original)));
    is_same.then_some(original)
}

/// Returns the segment in a single spelling.
fn normal(segment: &str) -> impl Iterator<Item = u8> {
    percent_decode_str(segment).map(lower)
}

fn lower(byte: u8) -> u8 {
    byte.to_ascii_lowercase()
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// Returns whether both queries have the same parameters, in any order.
fn is_same_query(routed: Option<&str>, original: Option<&str>) -> bool {
    let parameters = |query: Option<&str>| {
        let parameters = query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty());
        let mut parameters: Vec<_> = parameters.map(str::to_owned).collect();
        parameters.sort_unstable();
        parameters
    };
    routed == original || parameters(routed) == parameters(original)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_of_a_simple_line_is_that_of_its_authority() {
        for line in [
            "shop.example",
            "127.0.0.1:3000",
            "a-b.example:1",
            "SHOP.example:65535",
            "[::1]:80",
            "user@shop.example:80",
        ] {
            let authority: Authority = line.parse().expect("it is an authority");
            let line = HeaderValue::from_static(line);
            assert_eq!(*host_of(&line), *authority.host().as_bytes(), "{line:?}");
        }
        for line in ["", "shop.example:", "shop.example:port", "shop example"] {
            let by_parsing = line.parse::<Authority>().map_or(line.to_owned(), |authority| authority.host().to_owned());
            assert_eq!(*host_of(&HeaderValue::from_static(line)), *by_parsing.as_bytes(), "{line:?}");
        }
    }
}
