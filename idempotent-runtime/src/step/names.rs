//! The names of the steps that one execution has taken, and those that were taken under one claim.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::step::error::{LONGEST_NAME, StepErrorKind};
use crate::sync::{Mutex, lock};

#[derive(Default)]
pub(crate) struct Names(Mutex<BTreeSet<Box<str>>>);

impl Names {
    /// Takes the name. The name is free again when the returned value is dropped, unless
    /// [`for_good`](TakenName::for_good) was called.
    pub(crate) fn take(&self, name: &str) -> Result<TakenName<'_>, StepErrorKind> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(StepErrorKind::InvalidName);
        }
        if !self.with(|names| names.insert(name.into())) {
            return Err(StepErrorKind::Repeated);
        }
        Ok(TakenName { names: self, name: Some(name.into()) })
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeSet<Box<str>>) -> T) -> T {
        change(&mut lock(&self.0))
    }
}

/// A name in use. The name is free again if its step ends without a result.
pub(crate) struct TakenName<'a> {
    names: &'a Names,
    name: Option<Box<str>>,
}

impl TakenName<'_> {
    pub(crate) fn for_good(mut self) {
        self.name = None;
    }
}

impl Drop for TakenName<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.names.with(|names| names.remove(&name));
        }
    }
}

/// The owner of a step.
pub(crate) struct Owner {
    /// The number of the owner's execution: two executions of one handler may be two parts of a batch.
    pub(crate) execution: u64,
    /// The digest of the handlers between the owner and its claim, which is the same in other attempts. `None` for the
    /// handler that holds the claim.
    pub(crate) digest: Option<Box<str>>,
}

/// The digest of the handlers between a step and its claim.
#[derive(Default)]
pub(crate) struct OwnerDigest(Option<Sha256>);

impl OwnerDigest {
    pub(crate) fn add(&mut self, name: &str, place: &str) {
        let digest = self.0.get_or_insert_default();
        for part in [name, place] {
            digest.update(part);
            // A name or a path contains no NUL.
            digest.update([0]);
        }
    }

    /// Returns the digest in hexadecimal digits.
    pub(crate) fn finish(self) -> Option<Box<str>> {
        let digest: [u8; 32] = self.0?.finalize().into();
        Some(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// For each name, the execution that was the first to take that name under one claim.
#[derive(Default)]
pub(crate) struct Owners(Mutex<BTreeMap<Box<str>, u64>>);

impl Owners {
    pub(super) fn take(&self, name: &str, owner: &Owner) -> Result<(), StepErrorKind> {
        match *lock(&self.0).entry(name.into()).or_insert(owner.execution) {
            first if first == owner.execution => Ok(()),
            _ => Err(StepErrorKind::OfAnotherHandler),
        }
    }
}
