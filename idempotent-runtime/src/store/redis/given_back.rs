//! The marks of claims that were given back: a claim that arrives after its mark is rejected. One name for each token.
//!
//! In a Cluster, a script can use two names only if they are in one slot. So the mark's name is made for the slot of the key.

use std::sync::LazyLock;

use crate::key::RecordKey;
use crate::store::claim::Token;
use crate::store::columns::token_text;
use crate::store::redis::store::RedisStore;

const SLOTS: u16 = 16_384;

impl RedisStore {
    /// The name of the mark of a claim of `key` by `token`. It is no record key, so no listing shows it.
    pub(super) fn name_of_given_back(&self, key: &RecordKey, token: Token) -> Vec<u8> {
        name(&self.0.prefix, &self.name(key), token)
    }
}

fn name(prefix: &str, neighbour: &[u8], token: Token) -> Vec<u8> {
    let (tag, token) = (TAGS[usize::from(slot(neighbour))], token_text(token));
    // Only the first tag counts. One of the prefix is the neighbour's too; a brace that is none would hide a later one.
    let hides_tags = prefix.contains('{') && hash_tag(prefix.as_bytes()).is_none();
    let name = if hides_tags {
        format!("{{{tag:x}}}{prefix}given-back:{token}")
    } else {
        format!("{prefix}given-back:{{{tag:x}}}:{token}")
    };
    name.into_bytes()
}

/// For each slot, a number that is in it when it is written in hexadecimal digits.
static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut tags = vec![None; usize::from(SLOTS)];
    let mut missing = tags.len();
    for number in 0.. {
        let tag = &mut tags[usize::from(slot(format!("{number:x}").as_bytes()))];
        missing -= usize::from(tag.is_none());
        tag.get_or_insert(number);
        if missing == 0 {
            break;
        }
    }
    tags.into_iter().flatten().collect()
});

/// As the specification of Redis Cluster says: CRC-16 of the hash tag, or of the whole name.
fn slot(name: &[u8]) -> u16 {
    let hashed = hash_tag(name).unwrap_or(name);
    let crc = hashed.iter().fold(0_u16, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    });
    crc % SLOTS
}

fn hash_tag(name: &[u8]) -> Option<&[u8]> {
    let open = name.iter().position(|&byte| byte == b'{')?;
    let (tag, _) = name[open + 1..].split_at(name[open + 1..].iter().position(|&byte| byte == b'}')?);
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
    }

    #[test]
    fn given_back_shares_its_slot_with_every_key() {
        for prefix in ["idempotency:", "", "{app}:", "a}b:", "a{b:", "{}:", "{"] {
            for key in ["charges//k", "charges/@a/{x}", "charges//a}b{c", "charges//{}", "charges//}", "charges//{"] {
                let neighbour = [prefix.as_bytes(), key.as_bytes()].concat();
                let name = name(prefix, &neighbour, Token::unique());
                assert_eq!(slot(&name), slot(&neighbour), "{}", String::from_utf8_lossy(&name));
                let after =
                    name.strip_prefix(prefix.as_bytes()).map(|after| str::from_utf8(after).expect("it is ASCII"));
                assert!(after.is_none_or(|after| after.parse::<RecordKey>().is_err()), "a listing would show it");
            }
        }
    }
}
