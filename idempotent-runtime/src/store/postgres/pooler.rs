//! Detects a pooler such as PgBouncer that lends the server's connections for one transaction at a time.
//!
//! Behind such a pooler, nothing that belongs to a session is reliable. A prepared statement of one client may have the same name as
//! another client's, and then the server runs the wrong statement. PgBouncer before 1.21 does not prevent that. So behind a pooler
//! every statement is unnamed, and is in a transaction: sqlx sends the preparation of a statement and its execution in two messages,
//! and without a transaction the pooler may lend another connection for the second message. LISTEN has no effect.

use std::collections::HashSet;
use std::iter;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgQueryResult, PgRow, PgStatement, PgTransactionManager,
};
use sqlx::{ConnectOptions as _, Connection as _, Either, Execute, Executor as _, Postgres, SqlStr};
use sqlx_core::error::BoxDynError;
use sqlx_core::transaction::TransactionManager as _;
use tokio::time::timeout;

use crate::store::postgres::failure::is_of_another_statement;
use crate::sync::{Mutex, lock};

/// How long a connection may take to answer the test whether it works.
pub(super) const ALIVE_WITHIN: Duration = Duration::from_secs(1);

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;

/// How long the store assumes a pooler after a test without a result.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How many more connections are compared with the first one. Behind a balancer, each connection may lead to a different pooler, and
/// a pooler with one free connection always lends the same one. With at most this many poolers, two of the connections lead to the
/// same pooler.
const OTHERS: usize = 3;

/// How often each connection is tested.
const LOOKS: usize = 2;

/// What is known about the connections to the server.
pub(super) struct Pooler {
    state: AtomicU8,
    looking: tokio::sync::Mutex<()>,
    told_nothing: Mutex<Option<Instant>>,
}

impl Pooler {
    pub(super) fn unknown() -> Self {
        Self { state: AtomicU8::new(UNKNOWN), looking: tokio::sync::Mutex::default(), told_nothing: Mutex::default() }
    }

    pub(super) fn present() -> Self {
        Self { state: AtomicU8::new(PRESENT), ..Self::unknown() }
    }

    /// Returns whether there is a pooler, or may be one because nothing is known yet.
    pub(super) fn is_there(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ABSENT
    }

    pub(super) fn is_surely_there(&self) -> bool {
        self.state.load(Ordering::Relaxed) == PRESENT
    }

    pub(super) fn is_known(&self) -> bool {
        self.state.load(Ordering::Relaxed) != UNKNOWN
            || lock(&self.told_nothing).is_some_and(|looked| looked.elapsed() < LOOK_AGAIN)
    }

    /// Compares the server's processes behind `first` and some other connections. Each connection has a process of its own, unless a
    /// pooler lends them.
    pub(super) async fn recognise(
        &self,
        first: &mut PgConnection,
        options: &PgConnectOptions,
    ) -> Result<(), sqlx::Error> {
        let _one_at_a_time = self.looking.lock().await;
        if self.is_known() {
            return Ok(());
        }
        let others = join_all((0..OTHERS).map(|_| timeout(ALIVE_WITHIN, options.connect()))).await;
        let mut others: Vec<PgConnection> = others.into_iter().filter_map(|other| other.ok()?.ok()).collect();
        if others.is_empty() {
            *lock(&self.told_nothing) = Some(Instant::now());
            return Ok(());
        }
        if has_own_processes(first, &mut others).await? {
            self.state.store(ABSENT, Ordering::Relaxed);
        } else {
            self.found();
        }
        join_all(others.into_iter().map(PgConnection::close)).await;
        Ok(())
    }

    /// Learns from an error that another client's statement has the same name.
    pub(super) fn learn(&self, error: &sqlx::Error) {
        if is_of_another_statement(error) && self.state.load(Ordering::Relaxed) != PRESENT {
            self.found();
        }
    }

    fn found(&self) {
        self.state.store(PRESENT, Ordering::Relaxed);
        tracing::warn!(
            "PostgreSQL is behind a pooler in transaction mode: statements are not prepared, and waiting requests poll, because \
             LISTEN does not work there"
        );
    }
}

/// Returns whether each connection keeps its process of the server, and no two connections have the same one.
async fn has_own_processes(first: &mut PgConnection, others: &mut [PgConnection]) -> Result<bool, sqlx::Error> {
    let mut connections: Vec<_> = iter::once(first).chain(others).collect();
    let mut processes = vec![None; connections.len()];
    for _ in 0..LOOKS {
        for (connection, own) in connections.iter_mut().zip(&mut processes) {
            let process = process(connection).await?;
            if own.is_some_and(|own| own != process) {
                return Ok(false);
            }
            *own = Some(process);
        }
        // In the same order, a pooler that lends its processes in turn would give each connection the same process again.
        connections.reverse();
        processes.reverse();
    }
    let different: HashSet<_> = processes.iter().collect();
    Ok(different.len() == processes.len())
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = connection.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()")).await?;
    sqlx::Row::try_get(&row, 0)
}

/// A statement that is sent without a name, even if it says otherwise.
pub(super) struct Unnamed<E>(pub(super) E);

impl<'q, E: Execute<'q, Postgres> + 'q> Unnamed<E> {
    /// Runs the statement in a transaction, for which the pooler lends one connection.
    pub(super) async fn run_on(
        self,
        connection: &mut PgConnection,
    ) -> Result<Vec<Either<PgQueryResult, PgRow>>, sqlx::Error> {
        PgTransactionManager::begin(connection, None).await?;
        let answer = connection.fetch_many(self).try_collect().await;
        if answer.is_ok() {
            PgTransactionManager::commit(connection).await?;
        } else {
            PgTransactionManager::rollback(connection).await?;
        }
        answer
    }
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}
