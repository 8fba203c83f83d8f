//! A connection on which a handler waits, although PostgreSQL waits too: what was sent over it is lost.
//!
//! A router or a proxy that forwards nothing any more and closes nothing leaves both sides waiting. Only the server can tell that
//! from a slow statement: its process is active as long as it works on one, or waits for a lock. So the store asks over another
//! connection. The process is found by an advisory lock, which is that of this one transaction, behind a pooler too.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::store::postgres::own::OwnPool;

/// How long a statement has no answer before the server is asked, and the time between two looks.
///
/// On a slow line, the server waits between two messages of one statement for as long as a round trip takes. Two looks over the
/// same line are this much further apart than that, so they do not see the same wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the server may take to say it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

macro_rules! process_of_lock {
    ($what:literal, $join:literal) => {
        concat!(
            "SELECT ",
            $what,
            " FROM pg_locks ",
            $join,
            " pg_stat_activity activity USING (pid) WHERE locktype = 'advisory' AND granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = $1"
        )
    };
}

/// A role sees this of its own sessions.
const STATE: &str = process_of_lock!("state, extract(epoch FROM state_change)::text", "LEFT JOIN");

/// A role may do this to its own sessions.
const END: &str = concat!(
    process_of_lock!("pg_terminate_backend(pid)", "JOIN"),
    " AND state LIKE 'idle in transaction%' AND extract(epoch FROM state_change)::text = $2"
);

/// What a transaction does that has not got the statement.
#[derive(PartialEq, Eq)]
enum Silent {
    /// No transaction has the lock.
    Ended,
    /// It waits for a statement since this time of the server's clock.
    Waits { since: String },
}

/// Resolves when two looks have found that the server waits for a statement since the same moment, or has ended the transaction,
/// although a statement is under way. Then this ends the server's process, so nothing of the transaction is kept.
pub(super) async fn silence(pool: &OwnPool, lock: i64) {
    let mut before = None;
    loop {
        sleep(PATIENCE).await;
        // Without an answer, nothing is known.
        let now = timeout(ANSWERED_WITHIN, look(pool, lock)).await.ok().and_then(Result::ok).flatten();
        if now.is_some() && now == before {
            break;
        }
        before = now;
    }
    tracing::warn!(
        "a handler's statement was lost, because its connection to PostgreSQL no longer answers: the connection is closed, \
         and nothing of the transaction is kept"
    );
    if let Some(Silent::Waits { since }) = before {
        end(pool, lock, since).await;
    }
}

/// Ends the server's process of a transaction that is to be rolled back, and has no answer to that, if it waits for a statement.
pub(super) async fn end_unanswered(pool: &OwnPool, lock: i64) {
    if let Ok(Ok(Some(Silent::Waits { since }))) = timeout(ANSWERED_WITHIN, look(pool, lock)).await {
        end(pool, lock, since).await;
    }
}

/// If this fails, the key stays in flight until the server finds out that its client is gone.
async fn end(pool: &OwnPool, lock: i64, since: String) {
    let _ = timeout(ANSWERED_WITHIN, sqlx::query(END).bind(lock).bind(since).fetch_optional(pool)).await;
}

/// `None` of a transaction that is active, or about which this role learns nothing.
async fn look(pool: &OwnPool, lock: i64) -> Result<Option<Silent>, sqlx::Error> {
    let process: Option<(Option<String>, Option<String>)> =
        sqlx::query_as(STATE).bind(lock).fetch_optional(pool).await?;
    Ok(match process {
        None => Some(Silent::Ended),
        Some((Some(state), Some(since))) if state.starts_with("idle in transaction") => Some(Silent::Waits { since }),
        Some(_) => None,
    })
}
