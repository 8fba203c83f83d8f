//! The first claim of a key by `SET`: one of many in one pipeline. Each claim is a command of its own, so the server decides about
//! each key as it would without the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::{Cmd, RedisError, RedisResult, Value};

use crate::store::columns::span_millis;
use crate::store::redis::batched::{Batched, LARGEST};
use crate::store::redis::connection::Connection;
use crate::store::redis::unawaited::Unawaited;

pub(super) struct BatchedClaim {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) ttl: Duration,
}

impl BatchedClaim {
    pub(super) fn command(&self) -> Cmd {
        let mut set = Cmd::with_capacity(7, self.name.len() + self.value.len() + 32);
        set.arg("SET").arg(&self.name).arg(&self.value).arg("NX").arg("GET").arg("PX").arg(span_millis(self.ttl));
        set
    }

    /// Returns the value of another operation. If the connection broke, the command was sent twice, so the existing claim may be
    /// this one.
    pub(super) fn existing(&self, value: Option<Vec<u8>>) -> Option<Vec<u8>> {
        value.filter(|existing| *existing != self.value)
    }
}

/// What the next answer may be like. Sets it when dropped.
///
/// A batch without an answer may have asked for records that are too large for one pipeline: the next claims go alone.
struct Expectation<'a> {
    pipeline: &'a InPipeline,
    longest: usize,
}

impl Drop for Expectation<'_> {
    fn drop(&mut self) {
        self.pipeline.expect(self.longest);
    }
}

/// Sends first claims in one pipeline.
pub(super) struct InPipeline {
    connection: Connection,
    unawaited: Unawaited,
    /// The set of claims that expire.
    claims: String,
    /// The length of a long answer among the last ones.
    expected: AtomicUsize,
}

impl InPipeline {
    pub(super) fn new(connection: Connection, unawaited: Unawaited, claims: String) -> Self {
        Self { connection, unawaited, claims, expected: AtomicUsize::new(0) }
    }

    /// Returns the length of the answer that the next claim may get. No caller of a batch has its record before all records of
    /// the batch have arrived.
    pub(super) fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    pub(super) fn expect(&self, longest: usize) {
        self.expected.store(longest.max(self.expected() / 2), Ordering::Relaxed);
    }
}

impl Batched for InPipeline {
    type Operation = BatchedClaim;
    /// The existing value, or `None` if the key is claimed now.
    type Answer = Option<Vec<u8>>;

    fn bytes(&self, claim: &BatchedClaim) -> usize {
        claim.name.len() + claim.value.len() + self.expected()
    }

    async fn send(&self, batch: &[Arc<BatchedClaim>]) -> RedisResult<Vec<Option<Self::Answer>>> {
        let mut all = redis::Pipeline::with_capacity(batch.len());
        for claim in batch {
            all.add_command(claim.command());
        }
        let mut expectation = Expectation { pipeline: self, longest: LARGEST + 1 };
        // It is not sent again: each caller that still waits sends its own claim again.
        let answers = self.connection.send_many::<Vec<Value>>(all.ignore_errors()).await?;
        let mut longest = 0;
        let answers = answers.into_iter().zip(batch).map(|(answer, claim)| {
            let existing = match answer {
                Value::Nil => None,
                Value::BulkString(value) => claim.existing(Some(value)),
                // The claim had no effect. Its own call finds out what to do about the error.
                _ => return None,
            };
            longest = longest.max(existing.as_ref().map_or(0, Vec::len));
            Some(existing)
        });
        let answers: Vec<Option<Self::Answer>> = answers.collect();
        expectation.longest = longest;
        drop(expectation);
        let made = batch.iter().zip(&answers).filter(|(_, answer)| matches!(answer, Some(None)));
        let made: Vec<_> = made.map(|(claim, _)| (&claim.name[..], claim.ttl)).collect();
        if !made.is_empty() {
            self.unawaited.enter(&self.claims, made).await;
        }
        Ok(answers)
    }

    /// The server answers each command, so an error of all is that of the connection.
    fn is_rejected(_: &RedisError) -> bool {
        false
    }
}
