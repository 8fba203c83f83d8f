//! The thread that owns the writing connection: queued writes share a commit, and expired rows go between them.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::Connection as _;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};

use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::connections::Connections;
use crate::store::sqlite::failure::{Failure, store_error};
use crate::store::sqlite::handler_transactions::Turn;
use crate::store::sqlite::locked::{Context, delete_expired};
use crate::store::sqlite::open::{Opened, SqliteStoreBuilder};
use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::rows;
use crate::store::sqlite::rows::{Kind, SIZES};
use crate::store::sqlite::schema;
use crate::store::sqlite::writes::Write;

/// The writes that share a commit, at most: more would keep the first of them waiting.
const BATCH: usize = 512;

/// A batch takes no more writes once it has this many bytes, so that the log does not grow without bound.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Callers beyond this many wait for a place in the queue.
const QUEUE: usize = 1024;

/// The way to the writer. It stops when this is dropped and everything queued is done.
pub(super) struct Writer(mpsc::Sender<Box<dyn Job>>);

impl Writer {
    /// Opens the file on the writer's own thread, and leaves the connection there.
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
            let (clock, leases, place) = (facts.clock, Arc::clone(&facts.leases), Arc::clone(&facts.place));
            // If the caller has gone, the queue has lost its only sender and `run` ends at once.
            let _ = opened.send(Ok(facts));
            let context = Context { clock, leases: &leases, place: &place };
            let connection = run(connection, context, queue, &turn, options.deletion_interval()).await;
            // One after the other: of two that close at once, each may leave the log to the other.
            leases.close().await;
            others.readers.close().await;
            others.transactions.close().await;
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "the SQLite store did not close cleanly; nothing is lost");
            }
        };
        let thread = std::thread::Builder::new().name("idempotent-sqlite".to_owned());
        thread.spawn(move || runtime.block_on(life)).map_err(|error| failed(error.into()))?;
        let facts = answer.await.map_err(|stopped| failed(stopped.into()))??;
        Ok((Self(sender), facts))
    }

    /// The answer comes after the commit.
    pub(super) async fn submit<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        self.submit_held_back(write, None).await
    }

    /// The same, of a call that goes out when its batch has begun.
    pub(super) async fn submit_held_back<W: Write>(
        &self,
        write: W,
        call: Option<Arc<Call>>,
    ) -> Result<W::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Pending { write, outcome: None, reply, call };
        self.0.send(Box::new(job)).await.map_err(|_| StoreError::unavailable(WriterStopped))?;
        answer.await.map_err(|_| StoreError::unavailable(WriterStopped))?
    }
}

/// The other connections, which close before the writer's own.
pub(super) struct Others {
    pub(super) readers: Arc<Connections>,
    pub(super) transactions: SqlitePool,
}

#[derive(Debug, thiserror::Error)]
#[error("the thread that writes to the SQLite store has stopped")]
struct WriterStopped;

/// A write and the caller that waits for it, whatever its answer is.
trait Job: Send {
    /// Keeps the outcome; only what breaks the transaction is an error.
    fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        context: Context<'a>,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;
    /// The statement in which it can be a row among others.
    fn row_of(&self) -> Option<Kind>;
    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError>;
    /// Keeps the outcome of a row that was written.
    fn was_row(&mut self);
    /// Tells the outcome, which is on disk now.
    fn settle(self: Box<Self>);
    fn reject(self: Box<Self>, error: Arc<sqlx::Error>);
    /// Whether its caller no longer waits and would have to. Called once, before it is applied.
    fn abandoned(&self) -> bool;
    fn bytes(&self) -> usize;
}

struct Pending<W: Write> {
    write: W,
    outcome: Option<Result<W::Output, StoreError>>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
    call: Option<Arc<Call>>,
}

impl<W: Write> Job for Pending<W> {
    fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        context: Context<'a>,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            self.outcome = Some(match self.write.apply(connection, context).await {
                Ok(output) => Ok(output),
                Err(Failure::Answer(error)) => Err(error),
                Err(Failure::Sqlite(error)) => return Err(error),
            });
            Ok(())
        })
    }

    fn row_of(&self) -> Option<Kind> {
        self.write.as_row().map(|(kind, _)| kind)
    }

    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError> {
        self.write.add_to(arguments, clock)
    }

    fn was_row(&mut self) {
        self.outcome = self.write.as_row().map(|(_, output)| Ok(output));
    }

    fn settle(self: Box<Self>) {
        if let Some(outcome) = self.outcome {
            // A caller that has gone asks again, and finds what was done.
            let _ = self.reply.send(outcome);
        }
    }

    fn reject(self: Box<Self>, error: Arc<sqlx::Error>) {
        let _ = self.reply.send(Err(self.write.rejected(error)));
    }

    fn abandoned(&self) -> bool {
        let is_withdrawn = self.call.as_ref().is_some_and(|call| !call.send());
        is_withdrawn || W::ONLY_IF_AWAITED && self.reply.is_closed()
    }

    fn bytes(&self) -> usize {
        self.write.bytes()
    }
}

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
                if context.place.check().is_ok() {
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

/// Looks at the leases of other clocks.
async fn watch(context: Context<'_>) {
    if let Err(error) = context.leases.watch().await {
        tracing::debug!(error = &error as &dyn Error, "the leases of other clocks could not be looked at");
    }
}

/// Makes the file of leases anew, where it is lost.
async fn repair_leases(connection: &mut SqliteConnection, context: Context<'_>) {
    if !context.leases.is_lost() {
        return;
    }
    let repaired = async {
        begin(&mut *connection).await?;
        context.leases.repair(&mut *connection).await?;
        execute(&mut *connection, "COMMIT").await
    };
    let repaired = match repaired.await {
        Ok(()) => context.leases.connect().await,
        Err(error) => {
            rollback(connection).await;
            Err(store_error(error))
        }
    };
    match repaired {
        Ok(()) => tracing::warn!(
            "the file of leases beside the database was deleted or replaced: there is a new one, and each claim has one more lease"
        ),
        Err(error) => tracing::error!(
            error = &error as &dyn Error,
            "the file of leases beside the database was deleted or replaced, and cannot be made anew: this is tried again"
        ),
    }
}

async fn batch(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    first: Box<dyn Job>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) {
    let locked = match context.place.check() {
        Ok(()) => begin(connection).await,
        Err(moved) => Err(sqlx::Error::Io(io::Error::other(moved))),
    };
    // After the lock was granted, so that what came while we waited for it shares the commit.
    let mut bytes = first.bytes();
    let mut jobs = vec![first];
    while jobs.len() < BATCH && bytes < BATCH_BYTES {
        let Ok(job) = queue.try_recv() else { break };
        bytes += job.bytes();
        jobs.push(job);
    }
    if let Err(error) = locked {
        return reject(jobs, error);
    }
    jobs.retain(|job| !job.abandoned());
    if jobs.is_empty() {
        return rollback(connection).await;
    }
    match apply_and_commit(connection, context, &mut jobs).await {
        Ok(()) => jobs.into_iter().for_each(Job::settle),
        Err(error) if jobs.len() == 1 => reject(jobs, error),
        // Nothing of the batch took effect, and no caller has its answer. One by one, a bad write affects no other.
        Err(_) => {
            for job in jobs {
                alone(connection, context, job).await;
            }
        }
    }
}

fn reject(jobs: Vec<Box<dyn Job>>, error: sqlx::Error) {
    let error = Arc::new(error);
    for job in jobs {
        job.reject(Arc::clone(&error));
    }
}

async fn alone(connection: &mut SqliteConnection, context: Context<'_>, job: Box<dyn Job>) {
    let mut jobs = [job];
    let done = match begin(connection).await {
        Ok(()) => apply_and_commit(connection, context, &mut jobs).await,
        Err(error) => Err(error),
    };
    let [job] = jobs;
    match done {
        Ok(()) => job.settle(),
        Err(error) => job.reject(Arc::new(error)),
    }
}

async fn apply_and_commit(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    jobs: &mut [Box<dyn Job>],
) -> Result<(), sqlx::Error> {
    let mut done = apply(connection, context.stopped(), jobs).await;
    if done.is_ok() {
        done = execute(connection, "COMMIT").await;
    }
    if done.is_err() {
        rollback(connection).await;
    }
    done
}

/// In any order: all of them wait at the same time.
async fn apply(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    jobs: &mut [Box<dyn Job>],
) -> Result<(), sqlx::Error> {
    for kind in Kind::ALL {
        let mut rows: Vec<_> = jobs.iter_mut().filter(|job| job.row_of() == Some(kind)).collect();
        let mut rest = &mut rows[..];
        for size in SIZES {
            let mut chunks = rest.chunks_exact_mut(size);
            for rows in chunks.by_ref() {
                apply_rows(connection, context, kind, rows).await?;
            }
            rest = chunks.into_remainder();
        }
    }
    for job in jobs.iter_mut().filter(|job| job.row_of().is_none()) {
        job.apply(connection, context).await?;
    }
    Ok(())
}

async fn apply_rows(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    kind: Kind,
    jobs: &mut [&mut Box<dyn Job>],
) -> Result<(), sqlx::Error> {
    let mut arguments = SqliteArguments::default();
    for job in &*jobs {
        job.add_to(&mut arguments, context.clock).map_err(sqlx::Error::Encode)?;
    }
    if rows::write(connection, kind, jobs.len(), arguments).await? {
        for job in jobs {
            job.was_row();
        }
        return Ok(());
    }
    for job in jobs {
        job.apply(connection, context).await?;
    }
    Ok(())
}

/// Whether there may be more to delete.
async fn delete_expired_batch(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    turn: &Turn,
) -> Result<bool, StoreError> {
    let _turn = turn.lock().await;
    context.place.check()?;
    repair_leases(connection, context).await;
    context.leases.delete_expired().await?;
    delete_expired_rows(connection, context).await.map_err(Failure::into_error)
}

/// Looks before it locks: an idle store writes nothing.
async fn delete_expired_rows(connection: &mut SqliteConnection, context: Context<'_>) -> Result<bool, Failure> {
    if schema::at(context.now(), schema::ANY_EXPIRED).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(false);
    }
    begin(connection).await?;
    let mut deleted = delete_expired(connection, context).await;
    if deleted.is_ok() {
        deleted = execute(connection, "COMMIT").await.map_err(Failure::from).and(deleted);
    }
    if deleted.is_err() {
        rollback(connection).await;
    }
    Ok(deleted? > 0)
}

// Plain statements: sqlx's `Transaction` counts its depth, and does not learn that SQLite itself rolled back.
async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let begun = execute(connection, "BEGIN IMMEDIATE").await;
    if begun.is_err() {
        rollback(connection).await;
    }
    begun
}

/// Fails when SQLite has rolled back already; anything worse shows at the next `BEGIN`.
async fn rollback(connection: &mut SqliteConnection) {
    let _ = execute(connection, "ROLLBACK").await;
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}
