//! The keys that requests of this process wait for. All requests that wait for one key share one look.

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::key::RecordKey;
use crate::record::Record;
use crate::rejection::problem::Rejection;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, RuntimeId, lock};

/// How the request that was waited for has ended.
#[derive(Clone)]
pub(crate) enum RequestEnd {
    Recorded(Record),
    /// Released, rolled back, purged or expired.
    Gone,
    /// Its lease has expired, or its claim has lapsed.
    Lapsed,
    /// The store cannot tell how the request has ended.
    Rejected(Rejection),
}

/// A look at a key. Returns how the request has ended, and when the look began.
pub(crate) type Look = BoxFuture<'static, (Instant, RequestEnd)>;
type Looking = Shared<Look>;
/// The store, the key, whether the key is claimed in transactions, and the runtime whose clock wakes the look.
pub(crate) type Watched = (usize, RecordKey, bool, Option<RuntimeId>);

/// The keys that requests of this process wait for.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<Watched, WeakShared<Look>>>);

impl Watches {
    /// Returns how the request has ended, as seen by a look that begins from now on.
    pub(crate) async fn end_of(&self, watched: &Watched, look: impl Fn() -> Look) -> RequestEnd {
        let since = Instant::now();
        loop {
            let joined = self.join(watched, &look);
            let (looked_at, ended) = joined.looking.clone().await;
            // An older look may have found the end of an earlier request with the key.
            if looked_at >= since {
                return ended;
            }
        }
    }

    fn join(&self, watched: &Watched, look: impl Fn() -> Look) -> Joined<'_> {
        let mut all = lock(&self.0);
        let under_way = all.get(watched).and_then(WeakShared::upgrade).filter(|looking| looking.peek().is_none());
        let looking = under_way.unwrap_or_else(|| {
            let looking = look().shared();
            all.extend(looking.downgrade().map(|weak| (watched.clone(), weak)));
            looking
        });
        Joined { looking, _leave: Leave { watches: self, watched: watched.clone() } }
    }
}

/// One waiter; its fields are dropped in this order.
struct Joined<'a> {
    looking: Looking,
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
        if left.as_ref().is_none_or(|looking| looking.peek().is_some()) {
            watches.remove(&self.watched);
        }
        drop(watches);
    }
}
