//! The thread that owns the connection that writes. It applies queued writes in batches (`batch`), and maintains the
//! files between batches (`upkeep`).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};

use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::sqlite::batch::batch;
use crate::store::sqlite::connections::Connections;
use crate::store::sqlite::handler_transactions::Turn;
use crate::store::sqlite::job::{Job, Pending};
use crate::store::sqlite::kept::Kept;
use crate::store::sqlite::locked::Context;
use crate::store::sqlite::open::{Opened, SqliteStoreBuilder};
use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::upkeep::{delete_expired_batch, repair_leases, watch};
use crate::store::sqlite::writes::Write;

/// The length of the queue. More callers wait for a place in it.
const QUEUE: usize = 1024;

/// The queue of the writer. The writer stops when this is dropped and all queued writes are done.
pub(super) struct Writer(mpsc::Sender<Box<dyn Job>>);

impl Writer {
    /// Opens the file on the writer's own thread, and keeps the connection there.
    pub(super) async fn start(
        options: SqliteStoreBuilder,
        turn: Turn,
        others: Others,
    ) -> Result<(Self, Opened), SqliteOpenError> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        let path = options.path().to_owned();
        let failed = |source: Box<dyn Error + Send + Sync>| SqliteOpenError::Failed { path: path.clone(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| failed(error.into()))?;
        let life = async move {
            let (connection, facts) = match options.connect().await {
                Ok(connected) => connected,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let (clock, leases, file) = (facts.clock, Arc::clone(&facts.leases), Arc::clone(&facts.file));
            // If the caller has gone, the queue has lost its only sender and `run` ends at once.
            let _ = opened.send(Ok(facts));
            let context = Context { clock, leases: &leases, file: &file };
            let connection = run(connection, context, queue, &turn, options.deletion_interval()).await;
            // The connections close one after the other, because the last one that closes removes the log. If two close
            // at once, neither may be the last.
            leases.close().await;
            others.readers.close().await;
            let (pool, kept) = others.transactions;
            kept.close();
            pool.close().await;
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "the SQLite store did not close cleanly; nothing is lost");
            }
        };
        let thread = std::thread::Builder::new().name("idempotent-sqlite".to_owned());
        thread.spawn(move || runtime.block_on(life)).map_err(|error| failed(error.into()))?;
        let facts = answer.await.map_err(|stopped| failed(stopped.into()))??;
        Ok((Self(sender), facts))
    }

    /// Queues a write. The answer comes after the commit.
    pub(super) async fn submit<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        self.submit_held_back(write, None).await
    }

    /// Does the same as [`submit`](Self::submit). The store's waiting line learns by `call` when the batch of this
    /// write has begun.
    pub(super) async fn submit_held_back<W: Write>(
        &self,
        write: W,
        call: Option<Arc<Call>>,
    ) -> Result<W::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Box::new(Pending::new(write, reply, call)))
            .await
            .map_err(|_| StoreError::unavailable(WriterStopped))?;
        answer.await.map_err(|_| StoreError::unavailable(WriterStopped))?
    }
}

/// The other connections of the store, which close before the writer's own.
pub(super) struct Others {
    pub(super) readers: Arc<Connections>,
    pub(super) transactions: (SqlitePool, Arc<Kept>),
}

#[derive(Debug, thiserror::Error)]
#[error("the thread that writes to the SQLite store has stopped")]
struct WriterStopped;

async fn run(
    mut connection: SqliteConnection,
    context: Context<'_>,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    turn: &Turn,
    deletion_interval: Duration,
) -> SqliteConnection {
    let mut next_deletion = Deadline::after(deletion_interval);
    watch(context).await;
    loop {
        match next_deletion.bound(queue.recv()).await {
            Some(Some(first)) => {
                let _turn = turn.lock().await;
                if context.file.check().is_ok() {
                    repair_leases(&mut connection, context).await;
                }
                batch(&mut connection, context, first, &mut queue).await;
            }
            Some(None) => break,
            None => {}
        }
        if next_deletion.is_over() {
            watch(context).await;
            let more = delete_expired_batch(&mut connection, context, turn).await.unwrap_or_else(|error| {
                let error: &dyn Error = &error;
                tracing::warn!(error, "expired idempotency records could not be deleted; this is tried again");
                false
            });
            next_deletion = Deadline::after(if more { Duration::ZERO } else { deletion_interval });
        }
    }
    connection
}
