//! The queued writes that share a commit.

use std::io;
use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use tokio::sync::mpsc;

use crate::store::sqlite::job::Job;
use crate::store::sqlite::locked::Context;
use crate::store::sqlite::rows;
use crate::store::sqlite::rows::{Kind, SIZES};
use crate::store::sqlite::write_transaction::{begin, commit, rollback};

/// The largest number of writes that share a commit. With more, the first of them would wait too long.
const BATCH: usize = 512;

/// The number of bytes from which on a batch takes no more writes, so that the log does not grow without bound.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Applies `first` and the writes that are queued behind it, and commits once.
pub(super) async fn batch(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    first: Box<dyn Job>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) {
    let locked = match context.file.check() {
        Ok(()) => begin(connection).await,
        Err(moved) => Err(sqlx::Error::Io(io::Error::other(moved))),
    };
    // These are taken after the lock was granted, so that writes that were queued meanwhile share the commit.
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
        // Nothing of the batch took effect, and no caller has an answer. Applied one by one, a bad write affects no
        // other.
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

/// Applies one write and commits.
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
        done = commit(connection).await;
    }
    if done.is_err() {
        rollback(connection).await;
    }
    done
}

/// Applies all jobs. Their order is free, because the callers of all jobs wait at the same time.
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

/// Applies jobs as rows of one statement. Applies them one by one if a row is not the usual case (`rows`).
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
