//! The error of a builder, or of a configuration of the program, that yields no valid policy.

use std::fmt;

use crate::error_text::with_causes;

/// All mistakes in a policy.
#[derive(Clone, PartialEq, Eq)]
pub struct InvalidPolicy(Vec<String>);

impl InvalidPolicy {
    pub(crate) fn new(mistakes: Vec<String>) -> Self {
        Self(mistakes)
    }

    /// Returns the mistakes, each with a correct value.
    pub fn mistakes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy is invalid: {}", self.0.join("; "))
    }
}

impl fmt::Debug for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}

impl std::error::Error for InvalidPolicy {}
