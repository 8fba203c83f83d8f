//! The keys that requests of this process wait for. All requests that wait for one key share one check, which polls the
//! store.

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::key::RecordKey;
use crate::record::Record;
use crate::rejection::problem::Rejection;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, RuntimeId, lock};

/// How the request that other requests wait for has ended.
#[derive(Clone)]
pub(crate) enum RequestEnd {
    Recorded(Record),
    /// Released, rolled back, purged or expired.
    Gone,
    /// The lease of the request has expired, or its claim has lapsed.
    Lapsed,
    /// It is unknown how the request has ended, because the store or a transaction has failed.
    Rejected(Rejection),
}

/// A check of a key, which polls the store until the request has ended. Its output says how the request has ended, and
/// when the last poll began.
pub(crate) type Check = BoxFuture<'static, (Instant, RequestEnd)>;
type SharedCheck = Shared<Check>;
/// The store, the key, whether the key is claimed in transactions, and the runtime whose clock wakes the check.
pub(crate) type Watched = (usize, RecordKey, bool, Option<RuntimeId>);

/// The keys that requests of this process wait for.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<Watched, WeakShared<Check>>>);

impl Watches {
    /// Returns how the request has ended, as seen by a poll that begins after this call.
    pub(crate) async fn end_of(&self, watched: &Watched, begin: impl Fn() -> Check) -> RequestEnd {
        let since = Instant::now();
        loop {
            let joined = self.join(watched, &begin);
            let (checked_at, ended) = joined.check.clone().await;
            // An older poll may have found the end of an earlier request with the key.
            if checked_at >= since {
                return ended;
            }
        }
    }

    fn join(&self, watched: &Watched, begin: impl Fn() -> Check) -> Joined<'_> {
        let mut all = lock(&self.0);
        let under_way = all.get(watched).and_then(WeakShared::upgrade).filter(|check| check.peek().is_none());
        let check = under_way.unwrap_or_else(|| {
            let check = begin().shared();
            all.extend(check.downgrade().map(|weak| (watched.clone(), weak)));
            check
        });
        Joined { check, _leave: Leave { watches: self, watched: watched.clone() } }
    }
}

/// One waiting request. The check is dropped before the entry in the map is removed.
struct Joined<'a> {
    check: SharedCheck,
    _leave: Leave<'a>,
}

struct Leave<'a> {
    watches: &'a Watches,
    watched: Watched,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut watches = lock(&self.watches.0);
        let left = watches.get(&self.watched).and_then(WeakShared::upgrade);
        if left.as_ref().is_none_or(|check| check.peek().is_some()) {
            watches.remove(&self.watched);
        }
        drop(watches);
    }
}
