//! Text functions of the standard library, as functions for constants.

/// Returns the first character of UTF-8 text, and the text after it.
pub(crate) const fn first_char(text: &[u8]) -> Option<(char, &[u8])> {
    let (first, rest) = match text.split_first() {
        Some((first, rest)) => (*first as u32, rest),
        None => return None,
    };
    let (mut code, mut following, mut rest) = match first {
        0..0x80 => (first, 0, rest),
        0x80..0xE0 => (first & 0x1F, 1, rest),
        0xE0..0xF0 => (first & 0x0F, 2, rest),
        _ => (first & 0x07, 3, rest),
    };
    while following > 0 {
        let Some((byte, after)) = rest.split_first() else { return None };
        code = (code << 6) | (*byte as u32 & 0x3F);
        rest = after;
        following -= 1;
    }
    match char::from_u32(code) {
        Some(character) => Some((character, rest)),
        None => None,
    }
}

pub(crate) const fn is_control(character: char) -> bool {
    matches!(character, '\0'..='\x1f' | '\x7f'..='\u{9f}')
}

#[cfg(test)]
mod tests {
    use super::{first_char, is_control};

    #[test]
    fn every_character_is_read_as_the_standard_library_does() {
        for character in '\0'..=char::MAX {
            let text = format!("{character}x");
            assert_eq!(first_char(text.as_bytes()), Some((character, &b"x"[..])));
            assert_eq!(is_control(character), character.is_control(), "{character:?}");
        }
        assert_eq!(first_char(b""), None);
    }
}
