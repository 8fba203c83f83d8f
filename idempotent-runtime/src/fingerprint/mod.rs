//! The digest of a request's content: a reused key must come with the same content.

pub(crate) mod body;
pub(crate) mod builder;
pub(crate) mod canonical;
pub(crate) mod difference;
pub(crate) mod expression;
pub(crate) mod salted;
pub(crate) mod target;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::hexadecimal::hexadecimal;

/// The digest of a request's content, under one record key: 32 bytes, shown as 64 hexadecimal digits. Two requests with
/// one record key are the same if all 32 bytes are equal.
///
/// | bytes | content |
/// |---|---|
/// | 0 to 3 | the id of the algorithms and of the secret that keys the other bytes; `00000001` if the registry has no secret |
/// | 4 to 19 | the first 128 bits of the digest of everything that counts: target, body, credentials |
/// | 20, 21 | a hint at the target: 16 bits of its digest |
/// | 22, 23 | a hint at the body: 16 bits of its digest |
/// | 24 to 31 | a hint at each credential header: four slots of 16 bits. More than four headers share the slots |
///
/// All digests are SHA-256, salted with the record key: the same request has another fingerprint under another key. A
/// body of more than 8 KiB is digested with BLAKE3 first, because that is faster. The hints show which part of another
/// request differs. They are short, so that a reader of the store cannot find a secret with them alone: a slot has
/// 65,536 values, and many secrets share each value.
///
/// Without a secret, a reader of the store can still guess a whole request, and compare. With
/// [`RegistryBuilder::digest_with`](crate::RegistryBuilder::digest_with) or
/// [`seal_with`](crate::RegistryBuilder::seal_with), the salt is an HMAC of the record key, and a reader learns
/// nothing.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::Fingerprint;
///
/// let fingerprint = Fingerprint::from_bytes([0xab; 32]);
/// assert_eq!(fingerprint.to_string(), "ab".repeat(32));
/// assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
// Without this alignment, a fingerprint in an enum would be at an odd offset. The processor stalls when it reads a
// value at an odd offset right after the value was written in words.
#[repr(align(8))]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Creates the fingerprint with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The error of a text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct MalformedFingerprint;

impl FromStr for Fingerprint {
    type Err = MalformedFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(MalformedFingerprint);
        }
        let value = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { (digit | 0x20) - b'a' + 10 };
        let mut digest = [0; 32];
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = value(digits[0]) << 4 | value(digits[1]);
        }
        Ok(Self(digest))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
