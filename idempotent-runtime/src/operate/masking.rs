//! How keys and other people's text are shown: neither an eye nor a terminal may be led astray by them.

use std::fmt::Write as _;

/// Whether keys are shown completely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keys {
    /// Only their beginning and their length.
    #[default]
    Masked,
    /// Completely.
    Revealed,
}

/// The first four characters of a long key, none of a short key, and the number of characters.
///
/// ```
/// use idempotent_runtime::operate::masked;
///
/// assert_eq!(masked("8e03978e-40d5-43dd"), "8e03… (18)");
/// assert_eq!(masked("4711"), "… (4)");
/// ```
pub fn masked(key: &str) -> String {
    let length = key.chars().count();
    let beginning: String = key.chars().take(if length < 12 { 0 } else { 4 }).collect();
    format!("{}… ({length})", visible(&beginning))
}

/// The text, with an escape for every character that is invisible, or that moves or reorders the characters around it.
///
/// ```
/// use idempotent_runtime::operate::visible;
///
/// assert_eq!(visible("bob\u{1b}[2J\u{202e}"), r"bob\u{1b}[2J\u{202e}");
/// ```
pub fn visible(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, char| {
        if char.is_control() || misleads(char) {
            let _ = write!(shown, "{}", char.escape_unicode());
        } else {
            shown.push(char);
        }
        shown
    })
}

/// What has no width, and what changes the direction of the text.
fn misleads(char: char) -> bool {
    matches!(char, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
