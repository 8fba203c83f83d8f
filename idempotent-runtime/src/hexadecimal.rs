//! Bytes as hexadecimal digits.

/// Returns the digits of a digest. The formatter of the standard library takes many times as long.
pub(crate) fn hexadecimal(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
