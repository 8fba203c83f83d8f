//! Bounds how many requests of one caller are under way, so that one caller cannot take what all need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderName;

use crate::Fingerprint;
use crate::fingerprint::{Credentials, FingerprintBuilder};

/// Whom a request counts for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Principal {
    /// As the handler, its layer or the registry says.
    Caller(Box<str>),
    /// The digest of all credentials, where no caller is named.
    Credentials(Fingerprint),
    /// A request that has neither.
    Nobody,
}

impl Principal {
    pub(crate) fn of(caller: Option<&str>, names: &[HeaderName], credentials: &Credentials) -> Self {
        match caller {
            Some(caller) => Self::Caller(caller.into()),
            None if !credentials.is_empty() => {
                let mut digest = FingerprintBuilder::new();
                digest.credentials(names, credentials);
                Self::Credentials(digest.finish())
            }
            None => Self::Nobody,
        }
    }
}

/// Counts the requests under way, caller by caller and scope by scope.
pub(crate) struct CallerLimit {
    most: usize,
    under_way: Mutex<HashMap<(&'static str, Principal), usize>>,
}

impl CallerLimit {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, under_way: Mutex::default() }
    }

    /// A place, until it is dropped; `None` when the caller has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, scope: &'static str, principal: Principal) -> Option<Place> {
        let place = (scope, principal);
        let mut under_way = self.lock();
        let count = under_way.entry(place.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { limit: Arc::clone(self), place })
    }

    /// No code of ours panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<(&'static str, Principal), usize>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request under way.
pub(crate) struct Place {
    limit: Arc<CallerLimit>,
    place: (&'static str, Principal),
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.limit.lock();
        if let Some(count) = under_way.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                // A caller that is gone leaves nothing behind.
                under_way.remove(&self.place);
            }
        }
    }
}
