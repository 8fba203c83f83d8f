//! Reads from the text of a file what the structure checks need: its code, its words and its paths.

use std::collections::BTreeMap;

use crate::structure::Module;

/// The text without comments and without tests.
pub(super) fn code(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

pub(super) fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first word of the text.
pub(super) fn first_word(text: &str) -> &str {
    &text[..text.find(|c| !is_of_word(c)).unwrap_or(text.len())]
}

/// The paths from the root of the crate that occur in the code.
pub(super) fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        // `$crate::` belongs to a macro that other crates use.
        if code[..start].ends_with(|c| is_of_word(c) || c == '$' || c == '"') {
            continue;
        }
        let mut rest = &code[start + "crate::".len()..];
        let mut path = Vec::new();
        loop {
            let segment = first_word(rest);
            let after = &rest[segment.len()..];
            if !segment.is_empty() {
                path.push(segment.to_owned());
            }
            match after.strip_prefix("::") {
                Some(after) => rest = after,
                None => break,
            }
        }
        paths.push(path);
    }
    paths
}

/// The longest prefix of the path that is a file.
pub(super) fn defining_module(files: &BTreeMap<Module, String>, path: &[String]) -> Option<Module> {
    let length = (0..=path.len()).rev().find(|&length| files.contains_key(&path[..length]))?;
    Some(path[..length].to_vec())
}
