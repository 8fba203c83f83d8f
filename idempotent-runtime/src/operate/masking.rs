//! How keys and untrusted text are shown, so that they mislead neither a reader nor a terminal.

use std::fmt::Write as _;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup};
use icu_properties::{CodePointMapData, CodePointSetData};

/// Whether keys are shown completely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keys {
    /// Only the beginning and the length of a key are shown.
    #[default]
    Masked,
    /// Complete keys are shown.
    Revealed,
}

/// Returns the first four characters of a long key, none of a short key, and the number of characters.
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

/// Returns the text with an escape for each backslash, for each character that is invisible or that moves or reorders
/// the characters around it, and for a space at either end. So two texts that differ in such a character look
/// different, and the result is one line. Letters that look alike, such as letters of two scripts, are not escaped:
/// compare the [`id`](super::EntryView::id).
///
/// ```
/// use idempotent_runtime::operate::visible;
///
/// assert_eq!(visible("bob\u{1b}[2J\u{202e}"), r"bob\u{1b}[2J\u{202e}");
/// assert_eq!(visible("bob\u{e0041}\u{3164} "), r"bob\u{e0041}\u{3164}\u{20}");
/// assert_eq!(visible(r"bob\u{202e}"), r"bob\\u{202e}");
/// ```
pub fn visible(text: &str) -> String {
    let inner = text.trim_matches(' ');
    let before = text.len() - text.trim_start_matches(' ').len();
    let inside = before..before + inner.len();
    text.char_indices().fold(String::with_capacity(text.len()), |mut shown, (at, char)| {
        match char {
            '\\' => shown.push_str(r"\\"),
            ' ' if inside.contains(&at) => shown.push(' '),
            ' ' => shown.push_str(r"\u{20}"),
            _ if is_invisible(char) => {
                let _ = write!(shown, "{}", char.escape_unicode());
            }
            _ => shown.push(char),
        }
        shown
    })
}

/// Returns JSON text of the same value, with an escape for every character that [`visible`] escapes in text, except
/// spaces and backslashes. A program reads the original value, and a terminal shows all characters.
///
/// ```
/// use idempotent_runtime::operate::visible_json;
///
/// let escaped = visible_json("\"bob\u{202e}\u{e0041}\"");
/// assert_eq!(escaped, r#""bob\u202e\udb40\udc41""#);
/// assert_eq!(serde_json::from_str::<String>(&escaped)?, "bob\u{202e}\u{e0041}");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn visible_json(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut escaped, char| {
        // Outside of strings, JSON has line breaks; inside, it escapes the control characters below a space and the
        // backslash.
        if matches!(char, '\n' | '\r' | '\t') || !is_invisible(char) {
            escaped.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
        escaped
    })
}

/// Returns whether the character is invisible or misleading: characters that Unicode lets a font ignore
/// (`Default_Ignorable_Code_Point`), controls, formats, separators except the space, and private and unassigned
/// characters.
fn is_invisible(char: char) -> bool {
    if char.is_ascii() {
        return char.is_ascii_control();
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(char);
    GeneralCategoryGroup::Other.contains(category)
        || GeneralCategoryGroup::Separator.contains(category)
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(char)
        || char == BRAILLE_BLANK
}

/// This character looks like a space, although Unicode classifies it as a symbol.
const BRAILLE_BLANK: char = '\u{2800}';
