//! Observes the errors of a handler's statements, where they are visible.

use std::future::pending;
use std::task::{Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use sqlx::{Database, Execute, SqlStr};
use sqlx_core::error::BoxDynError;

use crate::policy::values::Isolation;
use crate::store::error::StoreError;
use crate::transaction::begun::{Begun, Failure};
use crate::transaction::error::TransactionError;

#[derive(Default)]
pub(super) struct Seen {
    /// The failure of the last statement that failed while the transaction was not yet aborted.
    pub(super) failure: Option<Failure>,
    /// The handler has used the connection itself. The engine does not see errors of such statements.
    is_used_directly: bool,
    /// The connection is dead, so nothing may be awaited on it.
    is_silent: bool,
    pub(super) isolation: Option<Isolation>,
}

impl Seen {
    /// Returns whether a conflict was seen that aborted the transaction.
    pub(super) fn is_conflict(&self) -> bool {
        self.failure == Some(Failure::Conflict)
    }

    /// Returns whether a conflict that was not seen may have aborted the transaction. If the policy has `isolation`, a
    /// conflict is the usual cause of an abort, and a retry is safe in any case.
    pub(super) fn may_be_conflict(&self) -> bool {
        self.failure.is_none() && self.is_used_directly && self.isolation.is_some()
    }

    /// Returns the error of a transaction that a conflict has aborted, or may have aborted.
    pub(super) fn conflict(&self, aborted: StoreError) -> TransactionError {
        if self.is_conflict() { TransactionError::Conflict(aborted) } else { TransactionError::Unseen }
    }

    /// Forgets the failure since the savepoint, because it has not aborted the transaction. A conflict is not
    /// forgotten: it may still make the commit fail, and it explains a failure of the handler.
    pub(super) fn roll_back_to(&mut self, before: Option<Failure>) {
        if !self.is_conflict() {
            self.failure = before;
        }
    }

    pub(super) fn note_direct_use(&mut self) {
        self.is_used_directly = true;
    }

    pub(super) fn is_used_directly(&self) -> bool {
        self.is_used_directly
    }

    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }
}

/// Observes one statement.
pub(super) struct Watch<'a, DB: Database> {
    pub(super) seen: &'a mut Seen,
    /// `None` in a unit test that calls the handler.
    pub(super) begun: Option<&'a dyn Begun<DB>>,
}

/// Returns the error of a statement that will get no answer, and of every later statement.
pub(super) fn silent() -> sqlx::Error {
    let what = "the connection of this handler's transaction no longer answers, and nothing that it writes is kept";
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

impl<'a, DB: Database> Watch<'a, DB> {
    /// Waits for the answer to a statement, however long it takes. Fails if it is certain that no answer will come.
    pub(super) async fn answer<T>(
        &mut self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let answer = tokio::select! {
            // If the answer has arrived, use it.
            biased;
            answer = statement => answer,
            () = self.silence() => {
                self.seen.is_silent = true;
                Err(silent())
            }
        };
        answer.inspect_err(|error| self.note(error))
    }

    /// Like [`answer`](Self::answer), for a statement that returns several rows. The handler may take any time for each
    /// row.
    pub(super) fn rows<T: Send + 'a>(
        mut self,
        mut rows: BoxStream<'a, Result<T, sqlx::Error>>,
    ) -> impl Stream<Item = Result<T, sqlx::Error>> + Send + 'a {
        let mut silence = None;
        stream::poll_fn(move |context| {
            if self.seen.is_silent {
                return Poll::Ready(None);
            }
            let row = match rows.poll_next_unpin(context) {
                Poll::Ready(row) => row,
                Poll::Pending => {
                    ready!(silence.get_or_insert_with(|| self.silence()).poll_unpin(context));
                    self.seen.is_silent = true;
                    Some(Err(silent()))
                }
            };
            silence = None;
            if let Some(Err(error)) = &row {
                self.note(error);
            }
            Poll::Ready(row)
        })
    }

    fn silence(&self) -> BoxFuture<'a, ()> {
        self.begun.map_or_else(|| pending().boxed(), |begun| begun.silence())
    }

    fn note(&mut self, error: &sqlx::Error) {
        match self.begun.and_then(|begun| begun.failure(error)) {
            None | Some(Failure::Aborted) => {}
            failure => self.seen.failure = failure,
        }
    }

    pub(super) fn leave_to_the_handler(&mut self) {
        self.seen.note_direct_use();
        if let Some(begun) = self.begun {
            begun.note_direct_use();
        }
    }

    pub(super) fn note_statement(&self, sql: &str) {
        if let Some(begun) = self.begun {
            begun.note_statement(sql);
        }
    }

    /// Returns the same query, after the store has seen its text.
    pub(super) fn noted<'q, E: Execute<'q, DB>>(&self, mut query: E) -> Noted<DB>
    where
        DB::Statement: Clone,
    {
        let (statement, arguments, is_persistent) =
            (query.statement().cloned(), query.take_arguments(), query.persistent());
        let sql = query.sql();
        self.note_statement(sql.as_str());
        Noted { sql, statement, arguments: Some(arguments), is_persistent }
    }
}

/// The parts of a query, because sqlx gives its text only to the one that executes it.
pub(super) struct Noted<DB: Database> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<Result<Option<DB::Arguments>, BoxDynError>>,
    is_persistent: bool,
}

impl<DB: Database> Execute<'_, DB> for Noted<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, BoxDynError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.is_persistent
    }
}
