//! Operations of many callers in one statement.

use std::marker::PhantomData;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use tokio::sync::OwnedSemaphorePermit;

use crate::store::batch::batcher::Batcher;
use crate::store::batch::sending::Sending;
use crate::store::error::StoreError;
use crate::store::postgres::failure::{is_rejected, store_error};
use crate::store::postgres::own::OwnConnection;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::{Query, Statement};

/// The number of statements for one kind of operation that are under way before further operations gather. It is lower for a small
/// pool: at most half of the pool's connections. On a machine of its own, PostgreSQL serves a few small statements side by side
/// faster than one larger statement.
const UNDER_WAY: usize = 3;

/// An operation with more bytes is sent in a statement of its own.
pub(super) const LARGEST: usize = 64 * 1024;

/// One operation.
pub(super) trait Batched: Send + Sync + Sized + 'static {
    type Answer: Send + 'static;

    /// Whether the operation waits for its turn before it takes a connection ([`Pools::turn`]).
    const IN_TURN: bool;

    /// The digest of the operation's key. A statement has each key once, for the first of its operations.
    fn digest(&self) -> &[u8; 32];

    /// The approximate number of bytes that the operation adds to the statement.
    fn bytes(&self) -> usize;

    /// Adds the parameters of the statement. The statement notifies waiting requests over `channel`.
    fn bind(batch: &[Arc<Self>], query: Query, channel: &str) -> Query;

    /// Returns the answer for another operation with the same key that waited in the queue, if it needs no statement of its own.
    fn answer_of_another(answer: &Self::Answer) -> Option<Self::Answer>;

    /// Returns an answer for each operation. An operation without an answer is sent in a statement of its own.
    fn answers(batch: &[Arc<Self>], rows: &[PgRow]) -> Result<Vec<Option<Self::Answer>>, sqlx::Error>;
}

/// Returns the index of the operation with this digest. A batch is sorted by digest.
pub(super) fn place_of<B: Batched>(batch: &[Arc<B>], digest: &[u8]) -> Option<usize> {
    batch.binary_search_by(|operation| operation.digest()[..].cmp(digest)).ok()
}

/// Sends operations in one statement.
pub(super) struct InStatement<B> {
    pools: Arc<Pools>,
    statement: Statement,
    channel: String,
    of: PhantomData<fn() -> B>,
}

impl<B: Batched> InStatement<B> {
    pub(super) fn batcher(pools: Arc<Pools>, statement: Statement, channel: String) -> Arc<Batcher<Self>> {
        Batcher::new(Self { pools, statement, channel, of: PhantomData })
    }
}

/// A connection of the store, and the turn in which it was taken.
pub(super) struct Session {
    pub(super) connection: OwnConnection,
    _turn: Option<OwnedSemaphorePermit>,
}

impl<B: Batched> Sending for InStatement<B> {
    type Operation = B;
    type Answer = B::Answer;
    type Session = Session;
    type Error = sqlx::Error;
    /// The digest, so that two processes do not wait for each other's rows.
    type Place = [u8; 32];

    /// Each claim takes a lock, and PostgreSQL has 64 locks for each connection.
    const MOST: usize = 32;

    const MOST_BYTES: usize = 1024 * 1024;

    fn under_way(&self) -> usize {
        let connections = self.pools.application().options().get_max_connections() as usize;
        (connections / 2).clamp(1, UNDER_WAY)
    }

    fn place(operation: &B, _: u64) -> [u8; 32] {
        *operation.digest()
    }

    fn bytes(&self, operation: &B) -> usize {
        operation.bytes()
    }

    async fn session(&self) -> Result<Session, StoreError> {
        let turn = if B::IN_TURN { Some(self.pools.turn().await?) } else { None };
        let connection = self.pools.own().acquire().await.map_err(store_error)?;
        Ok(Session { connection, _turn: turn })
    }

    async fn send(&self, batch: &[Arc<B>], session: &mut Session) -> Result<Vec<Option<B::Answer>>, sqlx::Error> {
        let query = B::bind(batch, self.statement.query(), &self.channel);
        B::answers(batch, &session.connection.fetch_all(query).await?)
    }

    /// A statement that PostgreSQL has rejected had no effect.
    fn is_rejected(error: &sqlx::Error) -> bool {
        is_rejected(error) || matches!(error, sqlx::Error::Encode(_))
    }

    fn lost_with_its_task() -> sqlx::Error {
        let reason = "the task that sent the statement has ended";
        sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, reason))
    }

    fn answer_of_another(answer: &B::Answer) -> Option<B::Answer> {
        B::answer_of_another(answer)
    }
}
