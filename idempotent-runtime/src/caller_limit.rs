//! Bounds how many requests of one caller are under way, so that one caller cannot take what all need.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::builder::{Credentials, FingerprintBuilder};
use crate::policy::scope::Scope;
use crate::sync::{Mutex, MutexGuard, lock};

/// Whom a request counts for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// As the handler, its layer or the registry says.
    Named(Box<str>),
    /// The digest of all credentials, where no caller is named.
    Credentials(Fingerprint),
    /// A request that has neither.
    Anonymous,
}

impl Caller {
    pub(crate) fn of(caller: Option<&str>, names: &[HeaderName], credentials: &Credentials) -> Self {
        match caller {
            Some(caller) => Self::Named(caller.into()),
            None if !credentials.is_empty() => {
                let mut digest = FingerprintBuilder::new();
                digest.credentials(names, credentials);
                Self::Credentials(digest.finish())
            }
            None => Self::Anonymous,
        }
    }
}

/// Counts the requests under way, caller by caller and scope by scope.
pub(crate) struct CallerLimit {
    most: usize,
    under_way: Mutex<HashMap<(Scope, Caller), usize>>,
}

impl CallerLimit {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, under_way: Mutex::default() }
    }

    /// A permit, until it is dropped; `None` when the caller has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, scope: Scope, caller: Caller) -> Option<Permit> {
        let counted = (scope, caller);
        let mut under_way = self.lock();
        let count = under_way.entry(counted.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Permit { limit: Arc::clone(self), counted })
    }

    /// No code of ours panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<(Scope, Caller), usize>> {
        lock(&self.under_way)
    }
}

/// One request under way.
pub(crate) struct Permit {
    limit: Arc<CallerLimit>,
    counted: (Scope, Caller),
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = self.limit.lock();
        if let Some(count) = under_way.get_mut(&self.counted) {
            *count -= 1;
            if *count == 0 {
                // A caller that is gone leaves nothing behind.
                under_way.remove(&self.counted);
            }
        }
    }
}
