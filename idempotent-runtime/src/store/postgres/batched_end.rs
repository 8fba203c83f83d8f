//! A completion or a release of a claim as one of many in one statement.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::record::{Record, unix_millis};
use crate::store::postgres::batched::{Batched, place_of};
use crate::store::postgres::statements::Query;

/// The operation took effect. If it has no such answer, the statements for one claim find out why.
pub(super) struct Ended;

pub(super) struct BatchedCompletion {
    pub(super) digest: [u8; 32],
    /// In the format of [`token_text`](crate::store::columns::token_text).
    pub(super) token: String,
    /// In milliseconds.
    pub(super) ttl: i64,
    pub(super) headers: String,
    pub(super) record: Record,
}

impl BatchedCompletion {
    pub(super) fn status(&self) -> i32 {
        i32::from(self.record.status.as_u16())
    }

    pub(super) fn body(&self) -> Option<&[u8]> {
        self.record.body_bytes().map(|body| &body[..])
    }
}

impl Batched for BatchedCompletion {
    type Answer = Ended;

    const IN_TURN: bool = false;

    fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    fn bytes(&self) -> usize {
        self.headers.len() + self.record.body_bytes().map_or(0, Bytes::len)
    }

    fn bind(batch: &[Arc<Self>], query: Query, channel: &str) -> Query {
        let records = || batch.iter().map(|completion| &completion.record);
        query
            .bind(batch.iter().map(|completion| completion.digest).collect::<Vec<_>>())
            .bind(batch.iter().map(|completion| &completion.token[..]).collect::<Vec<_>>())
            .bind(batch.iter().map(|completion| completion.ttl).collect::<Vec<_>>())
            .bind(records().map(|record| record.fingerprint.to_string()).collect::<Vec<_>>())
            .bind(records().map(|record| unix_millis(record.recorded_at)).collect::<Vec<_>>())
            .bind(batch.iter().map(|completion| completion.status()).collect::<Vec<_>>())
            .bind(batch.iter().map(|completion| &completion.headers[..]).collect::<Vec<_>>())
            .bind(batch.iter().map(|completion| completion.body()).collect::<Vec<_>>())
            .bind(channel)
    }

    /// A key has one claim, so another operation with the key has another token, or repeats this one.
    fn answer_of_another(_: &Ended) -> Option<Ended> {
        None
    }

    fn answers(batch: &[Arc<Self>], rows: &[PgRow]) -> Result<Vec<Option<Ended>>, sqlx::Error> {
        ended(batch, rows)
    }
}

pub(super) struct BatchedRelease {
    pub(super) digest: [u8; 32],
    pub(super) token: String,
}

impl Batched for BatchedRelease {
    type Answer = Ended;

    const IN_TURN: bool = false;

    fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    fn bytes(&self) -> usize {
        self.token.len()
    }

    fn bind(batch: &[Arc<Self>], query: Query, channel: &str) -> Query {
        query
            .bind(batch.iter().map(|release| release.digest).collect::<Vec<_>>())
            .bind(batch.iter().map(|release| &release.token[..]).collect::<Vec<_>>())
            .bind(channel)
            .bind("release many")
    }

    /// A key has one claim, so another operation with the key has another token, or repeats this one.
    fn answer_of_another(_: &Ended) -> Option<Ended> {
        None
    }

    fn answers(batch: &[Arc<Self>], rows: &[PgRow]) -> Result<Vec<Option<Ended>>, sqlx::Error> {
        ended(batch, rows)
    }
}

fn ended<B: Batched>(batch: &[Arc<B>], rows: &[PgRow]) -> Result<Vec<Option<Ended>>, sqlx::Error> {
    let mut answers: Vec<Option<Ended>> = batch.iter().map(|_| None).collect();
    for row in rows {
        if let Some(place) = place_of(batch, row.try_get("digest")?) {
            answers[place] = Some(Ended);
        }
    }
    Ok(answers)
}
