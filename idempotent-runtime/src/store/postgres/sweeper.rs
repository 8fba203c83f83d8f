//! Deletes expired rows, in one process at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::background_task::BackgroundTask;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::Statement;

pub(super) struct Sweeper {
    sweep: Sweep,
    interval: Duration,
    task: BackgroundTask,
}

#[derive(Clone)]
struct Sweep {
    pools: Arc<Pools>,
    statement: Statement,
    lock: i64,
}

impl Sweep {
    async fn once(&self) -> Result<usize, sqlx::Error> {
        let swept = self.statement.query().bind(self.lock).execute(self.pools.own()).await?.rows_affected();
        Ok(usize::try_from(swept).unwrap_or(usize::MAX))
    }
}

impl Sweeper {
    pub(super) fn new(pools: Arc<Pools>, statement: Statement, lock: i64, interval: Duration) -> Self {
        Self { sweep: Sweep { pools, statement, lock }, interval, task: BackgroundTask::default() }
    }

    /// One batch; 0 when nothing is left, or another process is at it.
    pub(super) async fn delete_expired(&self) -> Result<usize, sqlx::Error> {
        self.sweep.once().await
    }

    /// Starts to sweep, if this process does not yet.
    ///
    /// If no thread drives the runtime of the task, another process sweeps, or expired rows wait: claims judge expiry by
    /// themselves.
    pub(super) fn start(&self) {
        self.task.ensure(|| sweep_for_ever(self.sweep.clone(), self.interval));
    }
}

async fn sweep_for_ever(sweep: Sweep, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        loop {
            match sweep.once().await {
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
