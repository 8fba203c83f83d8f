//! Detects a connection on which the handler waits for PostgreSQL while PostgreSQL waits for the handler: a statement was lost.
//!
//! If a router or a proxy stops forwarding but closes no connection, both sides wait. Only the server can distinguish that from a
//! slow statement: its process is active while it runs a statement or waits for a lock. So the store asks the server over another
//! connection. It finds the process by an advisory lock that only this transaction has. This also works behind a pooler.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::store::postgres::own::OwnPool;

/// How long a statement has no answer before the store asks the server, and the time between two such queries.
///
/// On a slow network, the server waits for a round trip between two messages of one statement. Two queries over the same network
/// are further apart than that by this time, so they do not see the same wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the server may take to answer such a query.
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

/// A role may read this about its own sessions.
const STATE: &str = process_of_lock!("state, extract(epoch FROM state_change)::text", "LEFT JOIN");

/// A role may do this to its own sessions.
const END: &str = concat!(
    process_of_lock!("pg_terminate_backend(pid)", "JOIN"),
    " AND state LIKE 'idle in transaction%' AND extract(epoch FROM state_change)::text = $2"
);

/// The state of a transaction that has not received the statement.
#[derive(PartialEq, Eq)]
enum Silent {
    /// The transaction has ended: no transaction has the lock.
    Ended,
    /// The transaction has waited for a statement since this time of the server's clock.
    Waits { since: String },
}

/// Resolves when two queries have found that the server has waited for a statement since the same time, or has ended the transaction,
/// although a statement is under way. Before it resolves, this ends the server's process, so nothing of the transaction is kept.
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

/// Ends the server's process of a transaction whose ROLLBACK has no answer, if the process waits for a statement.
pub(super) async fn end_unanswered(pool: &OwnPool, lock: i64) {
    if let Ok(Ok(Some(Silent::Waits { since }))) = timeout(ANSWERED_WITHIN, look(pool, lock)).await {
        end(pool, lock, since).await;
    }
}

/// If this fails, the key stays in flight until the server notices that the connection is broken.
async fn end(pool: &OwnPool, lock: i64, since: String) {
    let _ = timeout(ANSWERED_WITHIN, sqlx::query(END).bind(lock).bind(since).fetch_optional(pool)).await;
}

/// Returns `None` if the transaction is active, or if this role may not read its state.
async fn look(pool: &OwnPool, lock: i64) -> Result<Option<Silent>, sqlx::Error> {
    let process: Option<(Option<String>, Option<String>)> =
        sqlx::query_as(STATE).bind(lock).fetch_optional(pool).await?;
    Ok(match process {
        None => Some(Silent::Ended),
        Some((Some(state), Some(since))) if state.starts_with("idle in transaction") => Some(Silent::Waits { since }),
        Some(_) => None,
    })
}
