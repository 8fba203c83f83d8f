//! The detection of a server that begins to evict keys after the store was opened: a server that was promoted or has
//! joined a Cluster, or the same server with another setting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::background_task::BackgroundTask;
use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::redis::connection::Connection;
use crate::store::redis::server;
use crate::sync::{Mutex, lock};

/// The time between two checks, unless a server joins.
const BETWEEN_CHECKS: Duration = Duration::from_secs(2);

/// The time in which the servers must answer a check.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct EvictionWatch {
    seen: Arc<Seen>,
    task: BackgroundTask,
}

struct Seen {
    /// The notification that the client connects to a server.
    joined: Arc<Notify>,
    last: Mutex<Look>,
}

/// A check of the servers.
struct Look {
    began_at: Instant,
    /// The policy of a server that evicts keys.
    policy: Option<String>,
}

impl EvictionWatch {
    pub(super) fn new(joined: Arc<Notify>) -> Self {
        let last = Mutex::new(Look { began_at: Instant::now(), policy: None });
        Self { seen: Arc::new(Seen { joined, last }), task: BackgroundTask::default() }
    }

    /// Rejects a claim while a server evicts keys. A task repeats the check over this connection. No claim waits for it: a server
    /// that does not answer would hold up the claims of all others.
    pub(super) fn check(&self, connection: &Connection) -> Result<(), StoreError> {
        self.task.ensure(|| look_for_ever(connection.clone(), Arc::clone(&self.seen)));
        match &lock(&self.seen.last).policy {
            None => Ok(()),
            Some(policy) => Err(StoreError::takes_no_claims(Evicts { policy: policy.clone() })),
        }
    }
}

async fn look_for_ever(connection: Connection, seen: Arc<Seen>) {
    loop {
        seen.look(&connection).await;
        let _ = Deadline::after(BETWEEN_CHECKS).bound(seen.joined.notified()).await;
    }
}

impl Seen {
    async fn look(&self, connection: &Connection) {
        let began_at = Instant::now();
        let told = Deadline::after(TOLD_WITHIN).bound(server::policy_that_evicts(connection)).await;
        // If a server cannot be asked now, the next check asks it again.
        let Some(Ok(policy)) = told else { return };
        let mut last = lock(&self.last);
        // A check that began earlier may end later, after its runtime stood still.
        if began_at < last.began_at {
            return;
        }
        last.began_at = began_at;
        let before = std::mem::replace(&mut last.policy, policy.clone());
        drop(last);
        match policy {
            Some(policy) if before.is_none() => {
                tracing::error!(
                    policy,
                    "Redis evicts keys now: claims are rejected until maxmemory-policy is noeviction"
                );
            }
            None if before.is_some() => tracing::info!("Redis evicts no keys any more: claims are accepted again"),
            _ => {}
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "Redis evicts keys when its memory is full (maxmemory-policy is {policy}), and a record that is evicted is run again: set \
     `maxmemory-policy noeviction` on every server, or say `.allow_eviction()` where a second execution is harmless"
)]
struct Evicts {
    policy: String,
}
