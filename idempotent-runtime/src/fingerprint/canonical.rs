//! The canonical form of JSON. It follows RFC 8785 except for numbers. RFC 8785 reads numbers as doubles, and then the
//! ids 2^53 and 2^53 + 1 are equal. Here two numbers are the same if they have the same value.

use serde::de::IgnoredAny;

/// The depth up to which `serde_json` reads.
const DEEPEST: usize = 128;

/// Returns the canonical form. Returns `None` if the text is not JSON, or if readers may read different values from it:
/// a member that occurs twice, a string with half of a surrogate pair, a number whose exponent no reader can hold.
pub(super) fn canonical_json(text: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(text).ok()?;
    // From here on the text is known to be JSON, so the walk need not check the syntax.
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let mut canonical = Vec::with_capacity(text.len());
    Walk { rest: text }.value(&mut canonical, DEEPEST)?;
    Some(canonical)
}

/// Writes a number by its value: all forms of one value have the same text, and two values have different texts.
/// Returns `None` if the exponent needs more than 64 bits.
pub(super) fn write_number(text: &str, canonical: &mut Vec<u8>) -> Option<()> {
    let (sign, magnitude) = text.strip_prefix('-').map_or(("", text), |magnitude| ("-", magnitude));
    let (decimal, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let zeros = digits.len() - significant.len();
    let exponent = i128::from(exponent.parse::<i64>().ok()?) + i128::try_from(zeros).ok()?
        - i128::try_from(fraction.len()).ok()?;
    match significant.trim_start_matches('0') {
        "" => canonical.push(b'0'),
        significant => canonical.extend_from_slice(format!("{sign}{significant}e{exponent}").as_bytes()),
    }
    Some(())
}

pub(super) fn write_string(text: &str, canonical: &mut Vec<u8>) {
    serde_json::to_writer(canonical, text).expect("text serialises");
}

/// Walks through text that is known to be JSON.
struct Walk<'a> {
    rest: &'a str,
}

impl<'a> Walk<'a> {
    fn value(&mut self, canonical: &mut Vec<u8>, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.rest = self.rest.trim_ascii_start();
        match self.rest.as_bytes().first()? {
            b'{' => self.object(canonical, depth),
            b'[' => self.array(canonical, depth),
            b'"' => {
                write_string(&self.string()?, canonical);
                Some(())
            }
            b't' | b'f' | b'n' => {
                let end = self.rest.find(|char: char| !char.is_ascii_lowercase()).unwrap_or(self.rest.len());
                canonical.extend_from_slice(self.take(end).as_bytes());
                Some(())
            }
            _ => {
                let is_of_number = |char: char| char.is_ascii_digit() || "+-.eE".contains(char);
                let end = self.rest.find(|char| !is_of_number(char)).unwrap_or(self.rest.len());
                write_number(self.take(end), canonical)
            }
        }
    }

    fn object(&mut self, canonical: &mut Vec<u8>, depth: usize) -> Option<()> {
        let mut members = Vec::new();
        while self.punctuation()? != '}' {
            if self.rest.trim_ascii_start().starts_with('}') {
                continue;
            }
            let name = self.name()?;
            let mut value = Vec::new();
            self.value(&mut value, depth)?;
            members.push((name, value));
        }
        members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        canonical.push(b'{');
        for (name, value) in members {
            write_string(&name, canonical);
            canonical.push(b':');
            canonical.extend_from_slice(&value);
            canonical.push(b',');
        }
        canonical.push(b'}');
        Some(())
    }

    fn array(&mut self, canonical: &mut Vec<u8>, depth: usize) -> Option<()> {
        canonical.push(b'[');
        while self.punctuation()? != ']' {
            if self.rest.trim_ascii_start().starts_with(']') {
                continue;
            }
            self.value(canonical, depth)?;
            canonical.push(b',');
        }
        canonical.push(b']');
        Some(())
    }

    fn name(&mut self) -> Option<String> {
        self.rest = self.rest.trim_ascii_start();
        let name = self.string()?;
        self.punctuation()?;
        Some(name)
    }

    fn string(&mut self) -> Option<String> {
        let mut is_escaped = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        })?;
        serde_json::from_str(self.take(end + 2)).ok()
    }

    /// Reads a bracket, comma or colon.
    fn punctuation(&mut self) -> Option<char> {
        self.rest = self.rest.trim_ascii_start();
        self.take(1).chars().next()
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}
