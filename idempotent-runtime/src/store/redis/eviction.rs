//! The detection of a server that begins to evict keys after the store was opened: a server that was promoted or has
//! joined a Cluster, or the same server with another setting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::background_task::BackgroundTask;
use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::redis::connection::Connection;
use crate::store::redis::server;
use crate::sync::{Mutex, lock};

/// The time between two checks, unless a server joins.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// The time in which the servers must answer a check.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct EvictionWatch {
    seen: Arc<Seen>,
    task: BackgroundTask,
}

struct Seen {
    /// The notification that the client connects to a server.
    joined: Arc<Notify>,
    /// The policy of a server that evicts keys.
    policy: Mutex<Option<String>>,
}

impl EvictionWatch {
    pub(super) fn new(joined: Arc<Notify>) -> Self {
        Self { seen: Arc::new(Seen { joined, policy: Mutex::default() }), task: BackgroundTask::default() }
    }

    /// Rejects a claim while a server evicts keys. A task repeats the check over this connection.
    pub(super) fn check(&self, connection: &Connection) -> Result<(), StoreError> {
        self.task.ensure(|| look_for_ever(connection.clone(), Arc::clone(&self.seen)));
        match &*lock(&self.seen.policy) {
            None => Ok(()),
            Some(policy) => Err(StoreError::takes_no_claims(Evicts { policy: policy.clone() })),
        }
    }
}

async fn look_for_ever(connection: Connection, seen: Arc<Seen>) {
    loop {
        let _ = Deadline::after(BETWEEN_LOOKS).bound(seen.joined.notified()).await;
        // If a server cannot be asked now, the next check asks it again.
        let look = Deadline::after(TOLD_WITHIN).bound(server::policy_that_evicts(&connection)).await;
        let Some(Ok(policy)) = look else { continue };
        let before = std::mem::replace(&mut *lock(&seen.policy), policy.clone());
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
