//! The names of the steps that one execution has taken, and those that were taken under one claim.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr;

use crate::policy::handle::PolicyHandle;
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

/// Who takes a step: the numbers of its execution and of those around it, from the inside out, and its handler.
pub(crate) struct Owner {
    pub(crate) path: Vec<u64>,
    /// `None` for a handler without a guard of its own.
    pub(crate) handler: Option<PolicyHandle>,
}

impl Owner {
    /// Whether both may mean the same step: those of one execution do, and those of a handler that something between it and
    /// its claim calls again.
    fn may_share_with(&self, other: &Self) -> bool {
        if self.path.first() == other.path.first() {
            return true;
        }
        let is_nested = self.path.ends_with(&other.path) || other.path.ends_with(&self.path);
        let handlers =
            [&self.handler, &other.handler].map(|handler| handler.as_deref().map_or(ptr::null(), ptr::from_ref));
        !is_nested && handlers[0] == handlers[1]
    }
}

/// Who has taken which name first under one claim.
#[derive(Default)]
pub(crate) struct Owners(Mutex<BTreeMap<Box<str>, Owner>>);

impl Owners {
    pub(super) fn take(&self, name: &str, owner: Owner) -> Result<(), StepErrorKind> {
        let mut owners = lock(&self.0);
        match owners.get(name) {
            Some(first) if !first.may_share_with(&owner) => Err(StepErrorKind::OfAnotherHandler),
            Some(_) => Ok(()),
            None => {
                owners.insert(name.into(), owner);
                Ok(())
            }
        }
    }
}
