//! Why a builder, or a configuration of the program, makes no policy.

use std::fmt;

use crate::error_text::with_causes;

/// What is wrong with a policy: all mistakes at once.
#[derive(Clone, PartialEq, Eq)]
pub struct InvalidPolicy(Vec<String>);

impl InvalidPolicy {
    pub(crate) fn new(mistakes: Vec<String>) -> Self {
        Self(mistakes)
    }

    /// The mistakes, each with a correct value.
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
