//! Digests the body of a request: its media type, its content codings and its content.

use http::{HeaderMap, HeaderValue, header};
use mediatype::{MediaType, ReadParams as _, names};
use memchr::memmem;

use crate::fingerprint::builder::PartDigest;
use crate::fingerprint::builder::{Piece, Pieces};
use crate::fingerprint::canonical::canonical_json;

/// The form of a body that is digested.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyForm {
    /// The bytes of the body. The boundary of a multipart body does not count.
    Bytes,
    /// The canonical form of the body, if the body is JSON.
    Json,
}

pub(crate) fn digest_of_body(headers: &HeaderMap, body: &[u8], form: BodyForm) -> PartDigest {
    let mut pieces = Pieces::new();
    let is_coded = digest_codings(&mut pieces, headers);
    let mut lines = headers.get_all(header::CONTENT_TYPE).iter();
    let only = lines.next().filter(|_| lines.next().is_none());
    let Some(media_type) = only.and_then(parsed) else {
        for line in headers.get_all(header::CONTENT_TYPE) {
            pieces.piece(Piece::RawMediaType, line.as_bytes());
        }
        pieces.piece(Piece::Bytes, body);
        return pieces.finish();
    };
    if let Some(segments) = segments(&media_type, body).filter(|_| !is_coded) {
        // Clients choose a new boundary for each attempt.
        digest_media_type(&mut pieces, &media_type, false);
        for segment in segments {
            pieces.piece(Piece::Segment, segment);
        }
        return pieces.finish();
    }
    digest_media_type(&mut pieces, &media_type, true);
    let canonical =
        (form == BodyForm::Json && is_json(&media_type) && !is_coded).then(|| canonical_json(body)).flatten();
    match canonical {
        Some(canonical) => pieces.piece(Piece::Json, &canonical),
        None => pieces.piece(Piece::Bytes, body),
    }
    pieces.finish()
}

/// Digests the names in `Content-Encoding`. Returns whether there is a name: a body with a content coding can be read
/// neither as JSON nor as multipart. A layer that has decoded the body has removed the header.
fn digest_codings(pieces: &mut Pieces, headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONTENT_ENCODING);
    let codings = lines.iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    // `identity` means no coding (RFC 9110, section 8.4).
    let codings =
        codings.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
    let mut is_coded = false;
    for coding in codings {
        is_coded = true;
        pieces.in_lower_case(Piece::ContentCoding, coding);
    }
    is_coded
}

/// Returns whether a multipart body can be divided in several ways: if the media type has two boundaries, readers
/// differ in which boundary they take.
pub(crate) fn has_several_boundaries(headers: &HeaderMap) -> bool {
    // Most media types have no parameter, and need not be parsed here.
    let with_parameters = |line: &&HeaderValue| memchr::memchr(b';', line.as_bytes()).is_some();
    let mut media_types = headers.get_all(header::CONTENT_TYPE).iter().filter(with_parameters).filter_map(parsed);
    media_types.any(|media_type| {
        let boundaries = media_type.params().filter(|(name, _)| *name == names::BOUNDARY);
        media_type.ty == names::MULTIPART && boundaries.count() > 1
    })
}

fn parsed(content_type: &HeaderValue) -> Option<MediaType<'_>> {
    // Most bodies have this media type, which need not be parsed.
    if content_type == "application/json" {
        return Some(MediaType::new(names::APPLICATION, names::JSON));
    }
    MediaType::parse(content_type.to_str().ok()?).ok()
}

fn digest_media_type(pieces: &mut Pieces, media_type: &MediaType<'_>, with_boundary: bool) {
    let names = [Some(media_type.ty), Some(media_type.subty), media_type.suffix];
    for name in names.into_iter().flatten() {
        pieces.in_lower_case(Piece::MediaType, name.as_str().as_bytes());
    }
    for (name, value) in media_type.params().filter(|(name, _)| with_boundary || *name != names::BOUNDARY) {
        pieces.in_lower_case(Piece::Parameter, name.as_str().as_bytes());
        pieces.piece(Piece::Parameter, value.unquoted_str().as_bytes());
    }
}

fn is_json(media_type: &MediaType<'_>) -> bool {
    let is_plain =
        media_type.ty == names::APPLICATION && media_type.subty == names::JSON && media_type.suffix.is_none();
    is_plain || media_type.suffix == Some(names::JSON)
}

/// Returns the bytes of a multipart body before, between and after its boundaries: preamble, parts, epilogue.
///
/// Returns `None` if the body is not multipart, or if two readers could divide it in two ways: then the boundary is
/// digested too. A delimiter begins at the start of a line and fills the line (RFC 2046, section 5.1.1); in the middle
/// of a line, the same bytes are content.
fn segments<'a>(media_type: &MediaType<'_>, body: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    if media_type.ty != names::MULTIPART {
        return None;
    }
    let boundary = media_type.get_param(names::BOUNDARY)?.unquoted_str().into_owned();
    if boundary.is_empty() {
        return None;
    }
    let delimiter = format!("--{boundary}");
    let (mut segments, mut start, mut is_closed) = (Vec::new(), 0, false);
    for at in memmem::find_iter(body, &delimiter) {
        let before = &body[..at];
        if before.last().is_some_and(|&byte| byte != b'\n') {
            continue;
        }
        let after = &body[at + delimiter.len()..];
        let closing = after.strip_prefix(b"--");
        let line_end = without_padding(closing.unwrap_or(after));
        let is_whole_line = line_end.starts_with(b"\r\n") || closing.is_some() && line_end.is_empty();
        let is_at_start = before.is_empty() || before.ends_with(b"\r\n");
        if is_closed || !is_at_start || !is_whole_line {
            return None;
        }
        segments.push(&body[start..at]);
        start = at + delimiter.len();
        is_closed = closing.is_some();
    }
    segments.push(&body[start..]);
    is_closed.then_some(segments)
}

/// Removes the spaces that gateways may add to a delimiter.
fn without_padding(line: &[u8]) -> &[u8] {
    let padding = line.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &line[padding..]
}
