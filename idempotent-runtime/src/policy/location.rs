//! The place in the source where a policy is written.

use std::fmt;

/// The place in the source where the policy is written.
#[derive(Clone, Debug)]
pub(crate) struct SourceLocation {
    pub(crate) module: &'static str,
    pub(crate) function: &'static str,
    pub(crate) file: &'static str,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// Returns the name of a type in the handler's body.
    pub(crate) path: fn() -> &'static str,
}

impl SourceLocation {
    /// Returns the path of the function, with the type and the trait of its `impl` block; empty for a layer's policy.
    ///
    /// The file, line and column do not distinguish all handlers, because a macro may emit several at one place. The
    /// path distinguishes them for people.
    pub(crate) fn function_path(&self) -> &'static str {
        // The type is inside the static of the policy, and the static is inside the function.
        (self.path)().rsplitn(3, "::").nth(2).unwrap_or_default()
    }

    /// Returns whether this is the copy of a handler that `debug_handler` makes for its own check, and which never
    /// runs.
    pub(crate) fn is_copy(&self) -> bool {
        (self.path)().split("::").any(|part| part.starts_with("__axum_macros_check_") && part.ends_with("_future"))
    }

    /// Returns a value to sort by: first the names, then the places.
    pub(crate) fn order(&self) -> impl Ord + use<> {
        (self.module, self.function, self.file, self.line, self.column, self.function_path())
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { module, function, file, line, .. } = self;
        match self.function_path() {
            "" if function.is_empty() => write!(f, "a layer at {file}:{line}"),
            "" => write!(f, "{module}::{function} at {file}:{line}"),
            path => write!(f, "{path} at {file}:{line}"),
        }
    }
}
