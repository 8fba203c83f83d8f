//! The hints of a fingerprint: which part of another request differs.

use std::ops::Range;

use http::HeaderName;

use crate::fingerprint::Fingerprint;

pub(super) const TARGET: Range<usize> = 18..21;
pub(super) const BODY: Range<usize> = 21..24;
pub(super) const SLOTS: [Range<usize>; 4] = [24..26, 26..28, 28..30, 30..32];

/// The slot of a credential header, by its place in the registry's list.
pub(super) fn slot_of(place: usize) -> usize {
    place % SLOTS.len()
}

/// The part in which two requests differ; of several, the first in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// In one header, if the hints tell in which.
    Credentials(Option<HeaderName>),
    Target,
    Body,
}

impl Difference {
    /// For logs and metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "credentials",
            Self::Target => "target",
            Self::Body => "body",
        }
    }

    /// The name of the header, or nothing.
    pub(crate) fn header(&self) -> &str {
        match self {
            Self::Credentials(Some(header)) => header.as_str(),
            _ => "",
        }
    }
}

impl Fingerprint {
    /// How many hints differ.
    pub(crate) fn distance(self, other: Self) -> usize {
        SLOTS.into_iter().chain([TARGET, BODY]).filter(|hint| self.differs_in(other, hint)).count()
    }

    /// In what a request differs, whose credential headers have these names; none where a caller is named.
    pub(crate) fn difference(self, other: Self, names: &[HeaderName]) -> Difference {
        let differing: Vec<usize> = (0..SLOTS.len()).filter(|&slot| self.differs_in(other, &SLOTS[slot])).collect();
        match differing[..] {
            [slot] if !names.is_empty() => Difference::Credentials(only_one_in(slot, names)),
            [_, ..] if !names.is_empty() => Difference::Credentials(None),
            _ if self.differs_in(other, &TARGET) => Difference::Target,
            _ if self.differs_in(other, &BODY) || names.is_empty() => Difference::Body,
            // All hints agree by chance: those of the credentials are the shortest.
            _ => Difference::Credentials(None),
        }
    }

    /// Each part by itself, as `keyed` makes it: what comes first is the number of the part.
    #[cfg(feature = "seal")]
    pub(crate) fn keyed(self, keyed: impl Fn(u8, &[u8]) -> [u8; 32]) -> Self {
        let mut bytes = keyed(0, &self.0);
        for (number, hint) in (1..).zip([TARGET, BODY].into_iter().chain(SLOTS)) {
            let of_part = keyed(number, &self.0[hint.clone()]);
            bytes[hint.clone()].copy_from_slice(&of_part[..hint.len()]);
        }
        Self(bytes)
    }

    fn differs_in(self, other: Self, hint: &Range<usize>) -> bool {
        self.0[hint.clone()] != other.0[hint.clone()]
    }
}

/// What a lock of PostgreSQL can carry of the hints: 12 bits of the credentials, 10 of the target and 10 of the body.
#[cfg(feature = "postgres")]
impl Fingerprint {
    pub(crate) fn bits(self) -> i32 {
        let number =
            |range: Range<usize>| self.0[range].iter().fold(0_u32, |number, &byte| number << 8 | u32::from(byte));
        let credentials = SLOTS.into_iter().fold(0, |bits, slot| bits ^ number(slot));
        ((credentials & 0xfff) << 20 | (number(TARGET) & 0x3ff) << 10 | number(BODY) & 0x3ff).cast_signed()
    }

    /// The fingerprint of a request of which only these bits are known: it differs from this one in the same parts.
    pub(crate) fn with_bits(self, bits: i32) -> Self {
        let differing = (self.bits() ^ bits).cast_unsigned();
        let mut bytes = self.0;
        let mut flip = |range: Range<usize>| bytes[range].iter_mut().for_each(|byte| *byte = !*byte);
        if differing != 0 {
            flip(0..TARGET.start);
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
