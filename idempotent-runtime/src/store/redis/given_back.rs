//! The marks of claims that were given back. A claim that arrives after its mark is rejected. Each token has a name of
//! its own.
//!
//! In a Cluster, a script can use two names only if they are in one slot. So the name of a mark is made for the slot of
//! the key.

use std::sync::LazyLock;

use crate::store::claim::Token;
use crate::store::columns::token_text;

const SLOTS: u16 = 16_384;

/// Returns a name in the slot of `neighbour`. The name begins with the prefix, as `neighbour` does.
pub(super) fn name(prefix: &str, neighbour: &[u8], token: Token) -> Vec<u8> {
    let token = token_text(token);
    // The first brace decides which part is hashed. The digits that lead to the slot are the end of that part.
    let name = match prefix.split_once('{').map(|(_, after)| after.find('}')) {
        None => {
            let before = format!("{prefix}given-back:{{");
            format!("{before}{digits}}}:{token}", digits = digits(b"", neighbour))
        }
        Some(None) => {
            let before = format!("{prefix}given-back:");
            let (_, hashed) = before.split_once('{').unwrap_or_default();
            format!("{before}{digits}}}:{token}", digits = digits(hashed.as_bytes(), neighbour))
        }
        Some(Some(0)) => {
            let before = format!("{prefix}given-back:{token}:");
            format!("{before}{digits}", digits = digits(before.as_bytes(), neighbour))
        }
        // A tag in the prefix puts every name in one slot.
        Some(Some(_)) => format!("{prefix}given-back:{token}"),
    };
    name.into_bytes()
}

/// Returns the digits that must follow `before` to reach the slot of `neighbour`.
fn digits(before: &[u8], neighbour: &[u8]) -> String {
    // The checksum is linear. The checksum of two joined texts is that of the first text, followed by zeros, combined
    // with that of the second.
    let followed = [0; DIGITS].iter().fold(crc(before), |crc, &byte| crc_step(crc, byte)) % SLOTS;
    hexadecimal(NUMBERS[usize::from(slot(neighbour) ^ followed)])
}

const DIGITS: usize = 6;

fn hexadecimal(number: u32) -> String {
    format!("{number:0DIGITS$x}")
}

/// A number for each slot. Written in [`DIGITS`] hexadecimal digits, the number is in that slot.
static NUMBERS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut numbers = vec![None; usize::from(SLOTS)];
    let mut missing = numbers.len();
    for number in 0.. {
        let number_of_slot = &mut numbers[usize::from(crc(hexadecimal(number).as_bytes()) % SLOTS)];
        missing -= usize::from(number_of_slot.is_none());
        number_of_slot.get_or_insert(number);
        if missing == 0 {
            break;
        }
    }
    numbers.into_iter().flatten().collect()
});

/// Returns the slot by the specification of Redis Cluster: CRC-16 of the hash tag, or of the whole name.
pub(super) fn slot(name: &[u8]) -> u16 {
    crc(hash_tag(name).unwrap_or(name)) % SLOTS
}

fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| crc_step(crc, byte))
}

fn crc_step(crc: u16, byte: u8) -> u16 {
    (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
}

fn hash_tag(name: &[u8]) -> Option<&[u8]> {
    let open = name.iter().position(|&byte| byte == b'{')?;
    let (tag, _) = name[open + 1..].split_at(name[open + 1..].iter().position(|&byte| byte == b'}')?);
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redis::names;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
    }

    #[test]
    fn given_back_shares_its_slot_with_every_key() {
        for prefix in ["idempotency:", "", "{app}:", "a}b:", "a{b:", "{}:", "{}{a}:", "{:", "a{{b}:"] {
            for key in ["charges//k", "charges/@a/{x}", "charges//a}b{c", "charges//{}", "charges//}", "charges//{"] {
                let neighbour = [prefix.as_bytes(), key.as_bytes()].concat();
                let name = name(prefix, &neighbour, Token::unique());
                assert_eq!(slot(&name), slot(&neighbour), "{}", String::from_utf8_lossy(&name));
                assert!(name.starts_with(prefix.as_bytes()), "a user may have no right to other names");
                assert_eq!(names::key_in(prefix, &name), None, "a listing would show it");
            }
        }
    }
}
