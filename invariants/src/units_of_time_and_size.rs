//! `ttl = "24h"` and `max_body = "4MiB"`.

use crate::units::{duration, size_in_bytes};

/// A text is a duration, or an error that says why it is not. The same holds for a size. A valid duration or size is
/// unchanged after it was written and read back.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn units_of_time_and_size(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match duration(text) {
        Ok(read) => {
            assert!(text.contains(|c: char| c.is_ascii_digit()), "{text:?} has no number");
            // humantime accepts only 0 without a unit.
            assert!(text.contains(char::is_alphabetic), "{text:?} has no unit");
            let written = humantime::format_duration(read).to_string();
            assert_eq!(duration(&written), Ok(read), "{text:?} as {written:?}");
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
    match size_in_bytes(text) {
        Ok(size) => {
            assert_eq!(size_in_bytes(&format!("{size}B")), Ok(size), "{text:?}");
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            let factors = [1, 1000, 1000_usize.pow(2), 1000_usize.pow(3), 1 << 10, 1 << 20, 1 << 30];
            let number: usize = digits.parse().expect("every size fits into a number");
            let is_product = factors.iter().any(|&factor| number.checked_mul(factor) == Some(size));
            assert!(is_product, "{text:?} is no {size}");
            assert!(text.trim_end().ends_with(['B', 'b']), "{text:?}");
        }
        Err(reason) => {
            let says_what_is_right = ["one of B, kB", "begin with a number", "too large"];
            assert!(says_what_is_right.iter().any(|part| reason.contains(part)), "{text:?}: {reason}");
        }
    }
}
