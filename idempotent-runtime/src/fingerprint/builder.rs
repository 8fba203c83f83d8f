//! Builds a fingerprint from the digests of its parts.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::fingerprint::difference::{SLOTS, slot_of};

/// The SHA-256 digest of one part of a request.
#[derive(Clone, Copy)]
pub(crate) struct PartDigest([u8; 32]);

/// The kind of a piece of a part.
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

/// The longest piece that is digested with SHA-256 alone, in bytes. A longer piece is digested with BLAKE3, and that
/// digest becomes the piece: BLAKE3 is faster on long input, because it digests many of its blocks at once.
///
/// The length alone decides, so every process computes the same fingerprint for the same request. Stored fingerprints
/// and downstream keys depend on this length. A change needs another [`KeyId`](crate::fingerprint::salted::KeyId).
const LONGEST_IN_FULL: usize = 8 * 1024;
/// Marks the kind of a piece that was digested first, so it cannot be equal to a short piece.
const BY_DIGEST: u8 = 0x80;

/// In bytes. Most parts are shorter.
const COLLECTED: usize = 512;

/// Collects the pieces of a part. Each piece is digested with its kind and length, so two different lists of pieces
/// have different digests.
pub(super) struct Pieces {
    digest: Sha256,
    /// The bytes that are not digested yet: to digest them together costs less than one call for each of them.
    collected: [u8; COLLECTED],
    /// How many bytes are collected.
    length: usize,
}

impl Pieces {
    pub(super) fn new() -> Self {
        Self { digest: Sha256::new(), collected: [0; COLLECTED], length: 0 }
    }

    pub(super) fn piece(&mut self, kind: Piece, bytes: &[u8]) {
        if bytes.len() <= LONGEST_IN_FULL {
            self.begin(kind as u8, bytes.len());
            self.update(bytes);
        } else {
            self.begin(kind as u8 | BY_DIGEST, bytes.len());
            self.update(blake3::hash(bytes).as_bytes());
        }
    }

    /// Adds text in lower case, because its case has no meaning.
    pub(super) fn in_lower_case(&mut self, kind: Piece, text: &[u8]) {
        self.begin(kind as u8, text.len());
        if let Some(place) = self.place(text.len()) {
            place.copy_from_slice(text);
            place.make_ascii_lowercase();
        } else {
            self.update(&text.to_ascii_lowercase());
        }
    }

    pub(super) fn finish(self) -> PartDigest {
        PartDigest(self.digest.chain_update(&self.collected[..self.length]).finalize().into())
    }

    fn begin(&mut self, kind: u8, length: usize) {
        let mut begin = [kind; 9];
        begin[1..].copy_from_slice(&(length as u64).to_le_bytes());
        self.update(&begin);
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some(place) = self.place(bytes.len()) {
            return place.copy_from_slice(bytes);
        }
        self.digest.update(&self.collected[..self.length]);
        self.length = 0;
        self.digest.update(bytes);
    }

    /// Returns the place of the next `length` bytes among the collected ones, if there is room for them.
    fn place(&mut self, length: usize) -> Option<&mut [u8]> {
        let place = self.collected.get_mut(self.length..)?.get_mut(..length)?;
        self.length += length;
        Some(place)
    }
}

/// The lines of a request's credential headers, each with the place of its name in the registry's list.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Credentials(Vec<(usize, HeaderValue)>);

impl Credentials {
    pub(crate) fn of(names: &[HeaderName], headers: &HeaderMap) -> Self {
        let mut credentials = Vec::new();
        for (place, name) in names.iter().enumerate() {
            let lines = headers.get_all(name).iter();
            if *name == header::COOKIE {
                credentials.extend(in_one_line(lines).map(|line| (place, line)));
            } else if matches!(*name, header::AUTHORIZATION | header::PROXY_AUTHORIZATION) {
                credentials.extend(lines.map(|line| (place, with_usual_scheme(line))));
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

/// Writes the scheme of a credential in one form. The case of a scheme has no meaning (RFC 9110, section 11.1), and
/// neither has the number of spaces after it: `bearer  t` and `Bearer t` are the same credential. A value without a
/// space may have no scheme, and stays as it is.
fn with_usual_scheme(line: &HeaderValue) -> HeaderValue {
    let Some(end) = line.as_bytes().iter().position(|&byte| byte == b' ') else { return line.clone() };
    let (scheme, rest) = line.as_bytes().split_at(end);
    let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
    let is_usual = spaces == 1
        && scheme
            .iter()
            .enumerate()
            .all(|(at, byte)| if at == 0 { !byte.is_ascii_lowercase() } else { !byte.is_ascii_uppercase() });
    if is_usual {
        return line.clone();
    }
    let mut usual = scheme.to_ascii_lowercase();
    if let Some(first) = usual.first_mut() {
        first.make_ascii_uppercase();
    }
    usual.push(b' ');
    usual.extend_from_slice(&rest[spaces..]);
    HeaderValue::from_bytes(&usual).unwrap_or_else(|_| line.clone())
}

/// Joins the cookie lines. HTTP/2 and HTTP/3 may send each cookie in a separate line, and a retry may use another
/// version, or come through a proxy that joins them (RFC 9113, section 8.2.3).
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

/// The digests of a request, part by part. No store gets them in this form: see [`salted`](crate::fingerprint::salted).
#[derive(Clone, Default)]
pub(crate) struct RequestDigest {
    /// Few requests have more than one header of credentials.
    parts: SmallVec<[(u8, PartDigest); 3]>,
}

impl RequestDigest {
    /// Returns the digest of all parts. It is computed anew in each call, because few requests need it.
    pub(crate) fn whole(&self) -> [u8; 32] {
        let mut whole = Sha256::new();
        for (part, digest) in self.parts() {
            whole.update([part]);
            whole.update(digest);
        }
        whole.finalize().into()
    }

    /// Returns the digests of the credential headers, if no caller was named.
    pub(crate) fn credentials(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.parts().filter(|(part, _)| *part >= FIRST_SLOT).map(|(_, digest)| digest)
    }

    /// Returns the number and the digest of each part that the request has.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u8, &[u8; 32])> {
        self.parts.iter().map(|(part, digest)| (*part, &digest.0))
    }
}

const TARGET: u8 = 0;
const BODY: u8 = 1;
const FIRST_SLOT: u8 = 2;

/// Collects the parts of a fingerprint, each at most once.
#[derive(Default)]
pub(crate) struct FingerprintBuilder(RequestDigest);

impl FingerprintBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn target(&mut self, digest: PartDigest) {
        self.part(TARGET, digest);
    }

    /// Adds the digest of the body, or of the value in its place.
    pub(crate) fn body(&mut self, digest: PartDigest) {
        self.part(BODY, digest);
    }

    /// Adds the credentials. `names` is the list by which they were collected.
    pub(crate) fn credentials(&mut self, names: &[HeaderName], credentials: &Credentials) {
        for (part, slot) in (FIRST_SLOT..).zip(0..SLOTS.len()) {
            let mut lines = credentials.0.iter().filter(|(place, _)| slot_of(*place) == slot).peekable();
            if lines.peek().is_none() {
                continue;
            }
            let (mut pieces, mut last) = (Pieces::new(), None);
            for (place, line) in lines {
                if last != Some(*place) {
                    last = Some(*place);
                    pieces.piece(Piece::HeaderName, names[*place].as_str().as_bytes());
                }
                pieces.piece(Piece::HeaderValue, line.as_bytes());
            }
            self.part(part, pieces.finish());
        }
    }

    pub(crate) fn finish(self) -> RequestDigest {
        self.0
    }

    fn part(&mut self, part: u8, digest: PartDigest) {
        self.0.parts.push((part, digest));
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::fingerprint::Fingerprint;

    fn digest(kind: Piece, bytes: &[u8]) -> String {
        let mut pieces = Pieces::new();
        pieces.piece(kind, bytes);
        Fingerprint::from_bytes(pieces.finish().0).to_string()
    }

    #[test]
    fn digest_of_each_length_is_the_one_of_earlier_records() {
        assert_eq!(
            digest(Piece::Bytes, &[7; LONGEST_IN_FULL]),
            "cf653913d9d95a1e6284c63c3b3e4415dcef0fca2b714d32e54740a83365530d"
        );
        assert_eq!(
            digest(Piece::Bytes, &[7; LONGEST_IN_FULL + 1]),
            "79ebab1775d94d02792bf59fe7b77d9599802d363d5292d1dcd2e193177a6dc8"
        );
    }

    #[test]
    fn long_pieces_differ_by_every_byte_length_and_kind() {
        let long = vec![7; 3 * LONGEST_IN_FULL];
        let of_long = digest(Piece::Bytes, &long);
        for changed in [0, LONGEST_IN_FULL, long.len() - 1] {
            let mut other = long.clone();
            other[changed] = 8;
            assert_ne!(digest(Piece::Bytes, &other), of_long, "byte {changed}");
        }
        assert_ne!(digest(Piece::Bytes, &long[1..]), of_long);
        assert_ne!(digest(Piece::Json, &long), of_long);
        assert_ne!(digest(Piece::Bytes, blake3::hash(&long).as_bytes()), of_long);
    }
}
