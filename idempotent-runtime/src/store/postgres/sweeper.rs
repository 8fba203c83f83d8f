//! Deletes expired rows, in one process at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::Statement;

pub(super) struct Sweeper {
    sweep: Sweep,
    interval: Duration,
    task: Mutex<Option<JoinHandle<()>>>,
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
        Self { sweep: Sweep { pools, statement, lock }, interval, task: Mutex::default() }
    }

    /// One batch; 0 when nothing is left, or another process is at it.
    pub(super) async fn delete_expired(&self) -> Result<usize, sqlx::Error> {
        self.sweep.once().await
    }

    /// Sees to it that somebody sweeps.
    pub(super) fn start(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process. If no thread
        // drives that runtime, another process sweeps, or expired rows wait: claims judge expiry by themselves.
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(sweep_for_ever(self.sweep.clone(), self.interval)));
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
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
