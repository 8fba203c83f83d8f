//! Puts a fingerprint together from the digests of its parts.

use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};

use crate::fingerprint::Fingerprint;
use crate::fingerprint::difference::{BODY, SLOTS, TARGET, slot_of};

/// The SHA-256 digest of one part of a request.
#[derive(Clone, Copy)]
pub(crate) struct PartDigest([u8; 32]);

/// What a piece of a part is.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    Method,
    Authority,
    Path,
    OriginalPath,
    NestedPath,
    PathParameter,
    Query,
    MediaType,
    Parameter,
    RawMediaType,
    Bytes,
    Segment,
    Json,
    Value,
    HeaderName,
    HeaderValue,
    ContentCoding,
    OtherHost,
    OriginalQuery,
}

/// Collects the pieces of a part; each goes in with its kind and length, so that no two lists of pieces meet.
pub(super) struct Pieces(Sha256);

impl Pieces {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(super) fn piece(&mut self, kind: Piece, bytes: &[u8]) {
        self.begin(kind, bytes.len());
        self.0.update(bytes);
    }

    /// Of text whose case says nothing.
    pub(super) fn in_lower_case(&mut self, kind: Piece, text: &[u8]) {
        self.begin(kind, text.len());
        let mut lower = [0; 32];
        for chunk in text.chunks(lower.len()) {
            let lower = &mut lower[..chunk.len()];
            lower.copy_from_slice(chunk);
            lower.make_ascii_lowercase();
            self.0.update(lower);
        }
    }

    pub(super) fn finish(self) -> PartDigest {
        PartDigest(self.0.finalize().into())
    }

    fn begin(&mut self, kind: Piece, length: usize) {
        self.0.update([kind as u8]);
        self.0.update((length as u64).to_le_bytes());
    }
}

/// The lines of a request's credential headers, each with the place of its name in the registry's list.
#[derive(Default, PartialEq)]
pub(crate) struct Credentials(Vec<(usize, HeaderValue)>);

impl Credentials {
    pub(crate) fn of(names: &[HeaderName], headers: &HeaderMap) -> Self {
        let mut credentials = Vec::new();
        for (place, name) in names.iter().enumerate() {
            let lines = headers.get_all(name).iter();
            if *name == header::COOKIE {
                credentials.extend(in_one_line(lines).map(|line| (place, line)));
            } else {
                credentials.extend(lines.map(|line| (place, line.clone())));
            }
        }
        Self(credentials)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// HTTP/2 and HTTP/3 may send each cookie in a line of its own, and a retry may come by another version, or through a proxy that
/// joins them (RFC 9113, section 8.2.3).
fn in_one_line<'a>(mut lines: impl Iterator<Item = &'a HeaderValue>) -> Option<HeaderValue> {
    let first = lines.next()?;
    let mut whole = None;
    for line in lines {
        let whole = whole.get_or_insert_with(|| first.as_bytes().to_vec());
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(line.as_bytes());
    }
    match whole {
        None => Some(first.clone()),
        Some(whole) => Some(HeaderValue::from_bytes(&whole).expect("the parts are values, and so is what joins them")),
    }
}

/// The digest of nothing: what `fingerprint = none` makes of a request without credentials. A part that is absent has its
/// bytes for a hint.
const NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// Collects the parts of a fingerprint, each at most once.
pub(crate) struct FingerprintBuilder {
    whole: Sha256,
    /// Those of the whole digest are filled in at the end.
    bytes: [u8; 32],
}

impl FingerprintBuilder {
    pub(crate) fn new() -> Self {
        Self { whole: Sha256::new(), bytes: NOTHING }
    }

    pub(crate) fn target(&mut self, digest: PartDigest) {
        self.part(0, TARGET, digest);
    }

    /// Of the body, or of the value in its place.
    pub(crate) fn body(&mut self, digest: PartDigest) {
        self.part(1, BODY, digest);
    }

    /// `names` is the list that the credentials were collected by.
    pub(crate) fn credentials(&mut self, names: &[HeaderName], credentials: &Credentials) {
        let mut slots = [const { None }; SLOTS.len()];
        let mut last = None;
        for (place, line) in &credentials.0 {
            let pieces = slots[slot_of(*place)].get_or_insert_with(Pieces::new);
            if last != Some(*place) {
                last = Some(*place);
                pieces.piece(Piece::HeaderName, names[*place].as_str().as_bytes());
            }
            pieces.piece(Piece::HeaderValue, line.as_bytes());
        }
        for ((tag, range), pieces) in (2..).zip(SLOTS).zip(slots) {
            if let Some(pieces) = pieces {
                self.part(tag, range, pieces.finish());
            }
        }
    }

    pub(crate) fn finish(mut self) -> Fingerprint {
        let whole: [u8; 32] = self.whole.finalize().into();
        self.bytes[..TARGET.start].copy_from_slice(&whole[..TARGET.start]);
        Fingerprint(self.bytes)
    }

    fn part(&mut self, tag: u8, hint: Range<usize>, digest: PartDigest) {
        self.whole.update([tag]);
        self.whole.update(digest.0);
        let length = hint.len();
        self.bytes[hint].copy_from_slice(&digest.0[..length]);
    }
}
