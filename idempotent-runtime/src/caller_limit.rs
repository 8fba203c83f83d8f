//! Limits how many operations of one caller are in progress, so that one caller cannot use up shared resources.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderName;

use crate::deadline::Deadline;
use crate::fingerprint::builder::{Credentials, FingerprintBuilder};
use crate::key::RecordKey;
use crate::policy::scope::Scope;
use crate::sync::tokio::sync::{OwnedSemaphorePermit, Semaphore};
use crate::sync::{Mutex, lock};

/// How many bodies of requests without caller and credentials are read at a time. All such clients share this number.
/// With the number for a single caller, one client could block the others. At axum's default limit of 2 MB, these
/// bodies need at most 2 GB.
const ANONYMOUS_BODIES: usize = 1_000;
/// How long a request waits for other bodies of its caller to be read.
const WAIT_FOR_BODIES: Duration = Duration::from_secs(1);

/// The largest number of permits that a semaphore can have.
const MAX_PERMITS: usize = usize::MAX >> 3;

/// The caller for which a request is counted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// The name that the handler, its layer or the registry gives.
    Named(Box<str>),
    /// The digest of all credentials, if no caller is named.
    Credentials([u8; 32]),
    /// The request has neither a caller nor credentials.
    Anonymous,
}

impl Caller {
    pub(crate) fn of(caller: Option<&str>, names: &[HeaderName], credentials: &Credentials) -> Self {
        match caller {
            Some(caller) => Self::Named(caller.into()),
            None if !credentials.is_empty() => {
                let mut digest = FingerprintBuilder::new();
                digest.credentials(names, credentials);
                Self::Credentials(digest.finish().whole())
            }
            None => Self::Anonymous,
        }
    }
}

/// The number of requests in progress for each key of one caller in one scope.
type Operations = HashMap<RecordKey, usize>;

/// Counts the operations in progress for each caller and scope. All requests with one key are one operation.
pub(crate) struct CallerLimit {
    most: usize,
    under_way: Mutex<HashMap<(Scope, Caller), Operations>>,
    /// The permits of each caller for reading bodies. A body is read before the operation of its key is known.
    bodies: Mutex<HashMap<Caller, Weak<Semaphore>>>,
}

impl CallerLimit {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, under_way: Mutex::default(), bodies: Mutex::default() }
    }

    /// Returns a permit to hold while the request runs. Returns `None` if the caller has reached its limit with other
    /// operations.
    pub(crate) fn acquire(self: &Arc<Self>, scope: Scope, caller: Caller, key: &RecordKey) -> Option<Permit> {
        let counted = (scope, caller);
        let mut under_way = lock(&self.under_way);
        let operations = under_way.entry(counted.clone()).or_default();
        if operations.len() >= self.most && !operations.contains_key(key) {
            return None;
        }
        *operations.entry(key.clone()).or_default() += 1;
        Some(Permit { limit: Arc::clone(self), counted, key: key.clone() })
    }

    /// Waits for a permit to hold while a body is read. Returns `None` if other bodies of the caller hold all permits
    /// for too long.
    pub(crate) async fn read_body(self: &Arc<Self>, caller: Caller) -> Option<BodyPermit> {
        let permits = {
            let mut bodies = lock(&self.bodies);
            bodies.get(&caller).and_then(Weak::upgrade).unwrap_or_else(|| {
                let most = if caller == Caller::Anonymous { self.most.max(ANONYMOUS_BODIES) } else { self.most };
                let permits = Arc::new(Semaphore::new(most.min(MAX_PERMITS)));
                bodies.insert(caller.clone(), Arc::downgrade(&permits));
                permits
            })
        };
        let mut permit = BodyPermit { permit: None, leave: LeaveBodies { limit: Arc::clone(self), caller } };
        permit.permit = Deadline::after(WAIT_FOR_BODIES).bound(permits.acquire_owned()).await?.ok();
        permit.permit.is_some().then_some(permit)
    }
}

/// Counts one request in progress until this value is dropped.
pub(crate) struct Permit {
    limit: Arc<CallerLimit>,
    counted: (Scope, Caller),
    key: RecordKey,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = lock(&self.limit.under_way);
        let Some(operations) = under_way.get_mut(&self.counted) else { return };
        if let Some(requests) = operations.get_mut(&self.key) {
            *requests -= 1;
            if *requests == 0 {
                operations.remove(&self.key);
            }
        }
        if operations.is_empty() {
            // Removes a caller that has no requests, so that the map does not grow.
            under_way.remove(&self.counted);
        }
    }
}

/// Counts one body that is being read. The permit is dropped before the entry of the caller is removed.
pub(crate) struct BodyPermit {
    permit: Option<OwnedSemaphorePermit>,
    #[expect(dead_code, reason = "it acts when it is dropped")]
    leave: LeaveBodies,
}

struct LeaveBodies {
    limit: Arc<CallerLimit>,
    caller: Caller,
}

impl Drop for LeaveBodies {
    fn drop(&mut self) {
        let mut bodies = lock(&self.limit.bodies);
        if bodies.get(&self.caller).is_some_and(|permits| permits.strong_count() == 0) {
            bodies.remove(&self.caller);
        }
    }
}
