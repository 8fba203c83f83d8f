//! Collects all mistakes, so that one compilation reports all of them.

use quote::ToTokens;

/// The mistakes that were found so far. This value must be read before it is dropped, because otherwise the mistakes
/// would be lost.
pub(crate) struct Diagnostics {
    errors: Option<syn::Error>,
    read: bool,
}

impl Diagnostics {
    pub(crate) fn new() -> Self {
        Self { errors: None, read: false }
    }

    /// Adds a mistake at these tokens.
    pub(crate) fn error(&mut self, at: impl ToTokens, message: impl std::fmt::Display) {
        self.combine(syn::Error::new_spanned(at, message));
    }

    pub(crate) fn combine(&mut self, error: syn::Error) {
        match &mut self.errors {
            Some(errors) => errors.combine(error),
            None => self.errors = Some(error),
        }
    }

    /// Returns all mistakes as an error, if there are any.
    pub(crate) fn into_result(mut self) -> Result<(), syn::Error> {
        self.read = true;
        self.errors.take().map_or(Ok(()), Err)
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        assert!(self.read || std::thread::panicking(), "mistakes were collected and not reported");
    }
}

/// Returns the valid name that the written one probably means.
pub(crate) fn nearest<'a>(written: &str, valid: &[&'a str]) -> Option<&'a str> {
    let written = written.to_lowercase();
    valid
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&written, &name.to_lowercase()), *name))
        .filter(|&(distance, name)| distance <= 1 + name.len() / 3)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// Joins the names as `a`, `b` and `c`.
pub(crate) fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
