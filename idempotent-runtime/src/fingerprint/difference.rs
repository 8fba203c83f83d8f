//! The hints of a fingerprint. They show which part of another request differs.

use std::ops::Range;

use http::HeaderName;

use crate::fingerprint::Fingerprint;

/// The bytes of the digest of all parts, behind the id of the secret.
pub(super) const WHOLE: Range<usize> = 4..20;
const TARGET: Range<usize> = 20..22;
const BODY: Range<usize> = 22..24;
pub(super) const SLOTS: [Range<usize>; 4] = [24..26, 26..28, 28..30, 30..32];
/// The bytes of each hint, by the number of the part.
pub(super) const HINTS: [Range<usize>; 6] = {
    let [first, second, third, fourth] = SLOTS;
    [TARGET, BODY, first, second, third, fourth]
};

/// Returns the slot of a credential header, by its place in the registry's list.
pub(super) fn slot_of(place: usize) -> usize {
    place % SLOTS.len()
}

/// The part in which two requests differ. If several parts differ, the first one in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// One credential header differs. Contains its name, if the hints identify it.
    Credentials(Option<HeaderName>),
    Target,
    Body,
}

impl Difference {
    /// Returns the name of the part for logs and metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "credentials",
            Self::Target => "target",
            Self::Body => "body",
        }
    }

    /// Returns the name of the header, or an empty text.
    pub(crate) fn header(&self) -> &str {
        match self {
            Self::Credentials(Some(header)) => header.as_str(),
            _ => "",
        }
    }
}

impl Fingerprint {
    /// Returns the part in which a request differs from this one. Both fingerprints must be made with the same secret.
    /// `names` are the names of the credential headers; the list is empty if a caller is named.
    pub(crate) fn difference(self, other: Self, names: &[HeaderName]) -> Difference {
        let differing: Vec<usize> = (0..SLOTS.len()).filter(|&slot| self.differs_in(other, &SLOTS[slot])).collect();
        match differing[..] {
            [slot] if !names.is_empty() => Difference::Credentials(only_one_in(slot, names)),
            [_, ..] if !names.is_empty() => Difference::Credentials(None),
            _ if self.differs_in(other, &TARGET) => Difference::Target,
            _ if self.differs_in(other, &BODY) || names.is_empty() => Difference::Body,
            // All hints are equal by chance. This is most likely for the hints of the credentials, which are the
            // shortest.
            _ => Difference::Credentials(None),
        }
    }

    fn differs_in(self, other: Self, hint: &Range<usize>) -> bool {
        self.0[hint.clone()] != other.0[hint.clone()]
    }
}

/// The bits of a fingerprint that a PostgreSQL lock can carry: 12 bits of the credentials, 10 of the target and 10 of
/// the body. A second value carries half of the key id, without which the other bits have no meaning.
#[cfg(feature = "postgres")]
impl Fingerprint {
    /// Returns half of the key id.
    pub(crate) fn key_id_bits(self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]]) ^ u16::from_le_bytes([self.0[2], self.0[3]])
    }

    pub(crate) fn bits(self) -> i32 {
        let number =
            |range: Range<usize>| self.0[range].iter().fold(0_u32, |number, &byte| number << 8 | u32::from(byte));
        let credentials = SLOTS.into_iter().fold(0, |bits, slot| bits ^ number(slot));
        ((credentials & 0xfff) << 20 | (number(TARGET) & 0x3ff) << 10 | number(BODY) & 0x3ff).cast_signed()
    }

    /// Returns the fingerprint of a request of which only these bits are known: it differs from this one in the same
    /// parts.
    pub(crate) fn with_bits(self, bits: i32) -> Self {
        let differing = (self.bits() ^ bits).cast_unsigned();
        let mut bytes = self.0;
        let mut flip = |range: Range<usize>| bytes[range].iter_mut().for_each(|byte| *byte = !*byte);
        if differing != 0 {
            flip(WHOLE);
        }
        if differing >> 20 != 0 {
            flip(SLOTS[0].start..SLOTS[3].end);
        }
        if differing >> 10 & 0x3ff != 0 {
            flip(TARGET);
        }
        if differing & 0x3ff != 0 {
            flip(BODY);
        }
        Self(bytes)
    }
}

fn only_one_in(slot: usize, names: &[HeaderName]) -> Option<HeaderName> {
    let mut in_slot = names.iter().enumerate().filter(|(place, _)| slot_of(*place) == slot).map(|(_, name)| name);
    in_slot.next().filter(|_| in_slot.next().is_none()).cloned()
}
