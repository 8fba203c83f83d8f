//! Bytes as hexadecimal digits.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Returns the digits of a digest or a number. The formatter of the standard library takes many times as long.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    write_hexadecimal(bytes, &mut text);
    String::from_utf8(text).expect("digits are ASCII")
}

/// Adds the digits to the text.
pub(crate) fn write_hexadecimal(bytes: &[u8], text: &mut Vec<u8>) {
    text.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| DIGITS[usize::from(digit)]));
}
