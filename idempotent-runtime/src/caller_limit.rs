//! Bounds how many operations of one caller are under way, so that one caller cannot take what all need.

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

/// How many bodies are read at a time of requests that have neither a caller nor credentials: all clients of that kind share them,
/// so a caller's own number would let one of them stop the others. At axum's default limit of 2 MB it is 2 GB.
const ANONYMOUS_BODIES: usize = 1_000;
/// How long a request waits for other bodies of its caller to be read.
const WAIT_FOR_BODIES: Duration = Duration::from_secs(1);

/// What a semaphore can have.
const MAX_PLACES: usize = usize::MAX >> 3;

/// Whom a request counts for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// As the handler, its layer or the registry says.
    Named(Box<str>),
    /// The digest of all credentials, where no caller is named.
    Credentials([u8; 32]),
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
                Self::Credentials(*digest.finish().whole())
            }
            None => Self::Anonymous,
        }
    }
}

/// The requests under way for each key of one caller in one scope.
type Operations = HashMap<RecordKey, usize>;

/// Counts the operations under way, caller by caller and scope by scope: requests with one key are one operation.
pub(crate) struct CallerLimit {
    most: usize,
    under_way: Mutex<HashMap<(Scope, Caller), Operations>>,
    /// Bodies are read before the key's operation is known; each caller has as many places for them.
    bodies: Mutex<HashMap<Caller, Weak<Semaphore>>>,
}

impl CallerLimit {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, under_way: Mutex::default(), bodies: Mutex::default() }
    }

    /// A permit, until it is dropped; `None` when the caller has as many other operations as it may.
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

    /// A place to read a body, until it is dropped; `None` when other bodies of the caller take them all for too long.
    pub(crate) async fn read_body(self: &Arc<Self>, caller: Caller) -> Option<BodyPermit> {
        let places = {
            let mut bodies = lock(&self.bodies);
            bodies.get(&caller).and_then(Weak::upgrade).unwrap_or_else(|| {
                let most = if caller == Caller::Anonymous { self.most.max(ANONYMOUS_BODIES) } else { self.most };
                let places = Arc::new(Semaphore::new(most.min(MAX_PLACES)));
                bodies.insert(caller.clone(), Arc::downgrade(&places));
                places
            })
        };
        let mut permit = BodyPermit { place: None, leave: LeaveBodies { limit: Arc::clone(self), caller } };
        permit.place = Deadline::after(WAIT_FOR_BODIES).bound(places.acquire_owned()).await?.ok();
        permit.place.is_some().then_some(permit)
    }
}

/// One request under way.
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
            // A caller that is gone leaves nothing behind.
            under_way.remove(&self.counted);
        }
    }
}

/// One body that is being read; the fields are dropped in this order.
pub(crate) struct BodyPermit {
    place: Option<OwnedSemaphorePermit>,
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
        if bodies.get(&self.caller).is_some_and(|places| places.strong_count() == 0) {
            bodies.remove(&self.caller);
        }
    }
}
