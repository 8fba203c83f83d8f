//! Deletes expired rows, and marks claims that stay, in one process at a time.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;

use crate::background_task::BackgroundTask;
use crate::deadline::Deadline;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::{Statement, Statements};
use crate::sync::{Mutex, lock};

pub(super) struct ExpiredDeletion {
    deletion: Deletion,
    schedule: Schedule,
    task: BackgroundTask,
}

/// When the task deletes. It is kept beside the task: another task may replace it, and must not begin to wait anew.
#[derive(Clone)]
struct Schedule {
    interval: Duration,
    next: Arc<Mutex<Option<Deadline>>>,
}

impl Schedule {
    fn next(&self) -> Deadline {
        *lock(&self.next).get_or_insert_with(|| Deadline::after(self.interval))
    }

    fn has_come(&self) {
        *lock(&self.next) = Some(Deadline::after(self.interval));
    }
}

#[derive(Clone)]
struct Deletion {
    pools: Arc<Pools>,
    statement: Statement,
    mark_lingering: Statement,
    lock: i64,
}

/// The largest number of steps in one call of `mark_lingering`. Each step reads ten thousand rows.
const MARK_LINGERINGS: usize = 20;

impl Deletion {
    async fn once(&self) -> Result<usize, sqlx::Error> {
        let deleted = self.statement.query().bind(self.lock).execute(self.pools.operators()).await?.rows_affected();
        Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
    }

    /// Returns whether no rows are left to read. While another process reads them, some may be left.
    async fn mark_lingering(&self) -> Result<bool, sqlx::Error> {
        for _ in 0..MARK_LINGERINGS {
            let marked = self.mark_lingering.query().bind(self.lock).fetch_one(self.pools.operators()).await?;
            let has_looked: bool = marked.try_get("has_looked")?;
            if !has_looked {
                return marked.try_get("is_ours");
            }
        }
        Ok(false)
    }
}

impl ExpiredDeletion {
    pub(super) fn new(pools: Arc<Pools>, statements: &Statements, lock: i64, interval: Duration) -> Self {
        let (statement, mark_lingering) = (statements.delete_expired.clone(), statements.mark_lingering.clone());
        Self {
            deletion: Deletion { pools, statement, mark_lingering, lock },
            schedule: Schedule { interval, next: Arc::default() },
            task: BackgroundTask::default(),
        }
    }

    /// Deletes one batch. Returns 0 if nothing is left or another process deletes.
    pub(super) async fn delete_expired(&self) -> Result<usize, sqlx::Error> {
        self.deletion.once().await
    }

    /// Marks the claims that stay, so that listings find them. Returns false if there may be more rows to read.
    pub(super) async fn mark_lingering(&self) -> Result<bool, sqlx::Error> {
        self.deletion.mark_lingering().await
    }

    /// Starts the task of this process, unless it is already running. Claims do not depend on the deletion.
    pub(super) fn start(&self) {
        self.task.ensure(|| delete_expired_for_ever(self.deletion.clone(), self.schedule.clone()));
    }
}

async fn delete_expired_for_ever(deletion: Deletion, schedule: Schedule) {
    loop {
        schedule.next().reached().await;
        schedule.has_come();
        if let Err(error) = deletion.mark_lingering().await {
            tracing::warn!(%error, "claims that never expire could not be marked for operators: this is tried again");
        }
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
