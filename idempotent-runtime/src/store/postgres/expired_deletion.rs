//! Deletes expired rows, in one process at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::background_task::BackgroundTask;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::Statement;

pub(super) struct ExpiredDeletion {
    deletion: Deletion,
    interval: Duration,
    task: BackgroundTask,
}

#[derive(Clone)]
struct Deletion {
    pools: Arc<Pools>,
    statement: Statement,
    lock: i64,
}

impl Deletion {
    async fn once(&self) -> Result<usize, sqlx::Error> {
        let deleted = self.statement.query().bind(self.lock).execute(self.pools.operators()).await?.rows_affected();
        Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
    }
}

impl ExpiredDeletion {
    pub(super) fn new(pools: Arc<Pools>, statement: Statement, lock: i64, interval: Duration) -> Self {
        Self { deletion: Deletion { pools, statement, lock }, interval, task: BackgroundTask::default() }
    }

    /// One batch; 0 when nothing is left or another process deletes.
    pub(super) async fn delete_expired(&self) -> Result<usize, sqlx::Error> {
        self.deletion.once().await
    }

    /// Starts the task of this process, unless it runs.
    ///
    /// If no thread drives the runtime of the task, another process deletes, or expired rows wait: claims do not
    /// depend on the deletion.
    pub(super) fn start(&self) {
        self.task.ensure(|| delete_expired_for_ever(self.deletion.clone(), self.interval));
    }
}

async fn delete_expired_for_ever(deletion: Deletion, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        loop {
            match deletion.once().await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "expired idempotency records could not be deleted; this is tried again");
                    break;
                }
            }
        }
    }
}
