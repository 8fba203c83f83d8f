//! The names of the steps that one execution has taken.

use std::collections::BTreeSet;

use crate::step::error::StepErrorKind;
use crate::sync::{Mutex, lock};

/// In bytes; with the longest key beside it, all of it encoded, a record key still fits into every store's index.
const LONGEST: usize = 255;

#[derive(Default)]
pub(crate) struct Names(Mutex<BTreeSet<Box<str>>>);

impl Names {
    /// Takes the name, until the guard is dropped or for good.
    pub(crate) fn take(&self, name: &str) -> Result<Taken<'_>, StepErrorKind> {
        if name.is_empty() || name.len() > LONGEST || name.chars().any(char::is_control) {
            return Err(StepErrorKind::InvalidName);
        }
        if !self.with(|names| names.insert(name.into())) {
            return Err(StepErrorKind::Repeated);
        }
        Ok(Taken { names: self, name: Some(name.into()) })
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeSet<Box<str>>) -> T) -> T {
        change(&mut lock(&self.0))
    }
}

/// A name in use: free again when its step ends without a result.
pub(crate) struct Taken<'a> {
    names: &'a Names,
    name: Option<Box<str>>,
}

impl Taken<'_> {
    pub(crate) fn for_good(mut self) {
        self.name = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.names.with(|names| names.remove(&name));
        }
    }
}
