//! What the writer does for a caller; each runs inside a transaction that holds the write lock.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments as _, Row as _};

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::HeadersText;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::{span_millis, token_text, unix_millis};
use crate::store::error::StoreError;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::failure::{Cause, Failure, store_error};
use crate::store::sqlite::rows::Kind;
use crate::store::sqlite::schema;

/// One change. It may be applied again after its transaction was rolled back.
pub(super) trait Write: Send + Sync + 'static {
    type Output: Send;

    /// Whether it is left out when nobody waits for it any more.
    const ONLY_IF_AWAITED: bool = false;

    fn apply(
        &self,
        connection: &mut SqliteConnection,
        clock: Clock,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;

    /// The statement in which it can be a row among others, and what its caller gets where that one did it.
    fn as_row(&self) -> Option<(Kind, Self::Output)> {
        None
    }

    /// The row's arguments.
    fn add_to(&self, arguments: &mut SqliteArguments, now: i64) -> Result<(), BoxDynError> {
        let _ = (arguments, now);
        Ok(())
    }

    /// Whether the writes that came with it go first, in a commit of their own.
    const AFTER_OTHERS: bool = false;

    /// What its caller gets when SQLite rejected it.
    fn rejected(&self, error: Arc<sqlx::Error>) -> StoreError {
        store_error(error)
    }

    /// Roughly what it adds to the transaction.
    fn bytes(&self) -> usize {
        0
    }
}

pub(super) struct ClaimWrite {
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) max_bytes: Option<u64>,
}

impl Write for ClaimWrite {
    type Output = Claim;

    // Nobody would run the handler, so nobody would complete or release the claim.
    const ONLY_IF_AWAITED: bool = true;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<Claim, Failure> {
        // Again, under the write lock: what a reader saw may have changed since.
        let row =
            schema::at(clock.now(), schema::EXISTING).bind(self.key.as_str()).fetch_optional(&mut *connection).await?;
        let existing = row.as_ref().map(StoredState::from_row).transpose()?;
        let fresh = existing.is_none();
        let attempt = match decide(existing, &self.request) {
            Decision::Answer(claim) => return Ok(claim),
            Decision::Keep { token, fingerprint } => {
                keep(connection, clock.now(), &self.key, token).await?;
                return Ok(Claim::Lapsed { fingerprint });
            }
            Decision::Take { attempt } => attempt,
        };
        if fresh && let Some(max_bytes) = self.max_bytes {
            make_room(connection, clock, max_bytes).await?;
        }
        let now = clock.now();
        schema::at(now, schema::CLAIM)
            .bind(self.key.as_str())
            .bind(self.request.fingerprint.to_string())
            .bind(token_text(self.request.token))
            .bind(attempt)
            .bind(span_millis(self.request.ttl))
            .bind(span_millis(self.request.lease))
            .bind(expires_at(&self.request, now))
            .execute(connection)
            .await?;
        Ok(Claim::Acquired { attempt })
    }

    /// Not where the store has a bound, which is for each claim to keep.
    fn as_row(&self) -> Option<(Kind, Claim)> {
        self.max_bytes.is_none().then_some((Kind::Claim, Claim::Acquired { attempt: 1 }))
    }

    fn add_to(&self, arguments: &mut SqliteArguments, now: i64) -> Result<(), BoxDynError> {
        let (ttl, lease) = (span_millis(self.request.ttl), span_millis(self.request.lease));
        arguments.add(self.key.as_str())?;
        arguments.add(self.request.fingerprint.to_string())?;
        arguments.add(token_text(self.request.token))?;
        arguments.add(ttl)?;
        arguments.add(now + lease)?;
        arguments.add(expires_at(&self.request, now))
    }

    fn rejected(&self, error: Arc<sqlx::Error>) -> StoreError {
        match Cause::of(&error) {
            Cause::Full => StoreError::Full,
            _ => store_error(error),
        }
    }
}

/// When a claim that is made now does.
fn expires_at(request: &ClaimRequest, now: i64) -> i64 {
    match request.after_crash {
        AfterCrash::Rerun => now + span_millis(request.ttl),
        AfterCrash::Reject => schema::NEVER,
    }
}

/// Under the write lock: what was judged is what is kept.
pub(super) async fn keep(
    connection: &mut SqliteConnection,
    now: i64,
    key: &RecordKey,
    token: Token,
) -> Result<(), sqlx::Error> {
    schema::at(now, schema::KEEP).bind(key.as_str()).bind(token_text(token)).execute(connection).await.map(drop)
}

/// What has expired may be room enough.
pub(super) async fn make_room(connection: &mut SqliteConnection, clock: Clock, max_bytes: u64) -> Result<(), Failure> {
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    for last in [false, true] {
        let used: i64 = sqlx::query_scalar(schema::USED_BYTES).fetch_one(&mut *connection).await?;
        if used < max_bytes {
            return Ok(());
        }
        if last || sweep(connection, clock).await? == 0 {
            break;
        }
    }
    Err(StoreError::Full.into())
}

pub(super) struct RenewWrite {
    pub(super) key: RecordKey,
    pub(super) token: Token,
    pub(super) lease: Duration,
}

impl Write for RenewWrite {
    type Output = Held;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<Held, Failure> {
        let renewed = schema::at(clock.now(), schema::RENEW)
            .bind(self.key.as_str())
            .bind(token_text(self.token))
            .bind(span_millis(self.lease))
            .execute(connection)
            .await?;
        Ok(held(renewed.rows_affected() > 0))
    }
}

pub(super) struct RenewManyWrite {
    pub(super) renewals: Vec<Renewal>,
}

impl Write for RenewManyWrite {
    type Output = Vec<Held>;

    // One that came too late would bring a lease back to life that was let lapse.
    const ONLY_IF_AWAITED: bool = true;

    // A request waits for each of the others.
    const AFTER_OTHERS: bool = true;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<Vec<Held>, Failure> {
        let renewals: Vec<_> = self
            .renewals
            .iter()
            .map(|renewal| (renewal.key.as_str(), token_text(renewal.token), span_millis(renewal.lease)))
            .collect();
        let renewals_text = serde_json::to_string(&renewals).map_err(StoreError::unavailable)?;
        let renewed: HashSet<String> = sqlx::query_scalar(schema::RENEW_MANY)
            .bind(clock.now())
            .bind(renewals_text)
            .fetch_all(connection)
            .await?
            .into_iter()
            .collect();
        Ok(renewals.iter().map(|(_, token, _)| held(renewed.contains(token))).collect())
    }
}

pub(super) struct CompleteWrite {
    key: RecordKey,
    token: Token,
    record: Record,
    headers: String,
    ttl: Duration,
}

impl CompleteWrite {
    pub(super) fn new(key: RecordKey, token: Token, mut record: Record, ttl: Duration) -> Result<Self, StoreError> {
        let headers = headers_text(&record)?;
        record.headers = Vec::new();
        Ok(Self { key, token, record, headers, ttl })
    }
}

impl Write for CompleteWrite {
    type Output = Held;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<Held, Failure> {
        let token = token_text(self.token);
        let completed = schema::at(clock.now(), schema::COMPLETE)
            .bind(self.key.as_str())
            .bind(&token)
            .bind(span_millis(self.ttl))
            .bind(self.record.fingerprint.to_string())
            .bind(unix_millis(self.record.recorded_at))
            .bind(self.record.status.as_u16())
            .bind(&self.headers)
            .bind(self.record.body_bytes().map(AsRef::<[u8]>::as_ref))
            .execute(&mut *connection)
            .await?;
        if completed.rows_affected() > 0 {
            return Ok(Held::Yes);
        }
        let before = schema::at(clock.now(), schema::COMPLETED_BY).bind(self.key.as_str()).bind(&token);
        Ok(held(before.fetch_optional(connection).await?.is_some()))
    }

    /// Not where the record is over at once: applied again, it would not find itself.
    fn as_row(&self) -> Option<(Kind, Held)> {
        (!self.ttl.is_zero()).then_some((Kind::Complete, Held::Yes))
    }

    fn add_to(&self, arguments: &mut SqliteArguments, now: i64) -> Result<(), BoxDynError> {
        arguments.add(self.key.as_str())?;
        arguments.add(token_text(self.token))?;
        arguments.add(now)?;
        arguments.add(now + span_millis(self.ttl))?;
        arguments.add(self.record.fingerprint.to_string())?;
        arguments.add(unix_millis(self.record.recorded_at))?;
        arguments.add(self.record.status.as_u16())?;
        arguments.add(self.headers.as_str())?;
        arguments.add(self.record.body_bytes().map(AsRef::<[u8]>::as_ref))
    }

    fn bytes(&self) -> usize {
        self.headers.len() + self.record.payload_bytes()
    }
}

pub(super) struct ReleaseWrite {
    pub(super) key: RecordKey,
    pub(super) token: Token,
}

impl Write for ReleaseWrite {
    type Output = Held;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<Held, Failure> {
        let released = schema::at(clock.now(), schema::RELEASE).bind(self.key.as_str()).bind(token_text(self.token));
        Ok(held(released.execute(connection).await?.rows_affected() > 0))
    }
}

pub(super) struct PurgeWrite {
    pub(super) key: RecordKey,
}

impl Write for PurgeWrite {
    type Output = bool;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<bool, Failure> {
        let purged = schema::at(clock.now(), schema::PURGE).bind(self.key.as_str()).fetch_optional(connection).await?;
        Ok(purged.is_some_and(|row| row.get("alive")))
    }
}

pub(super) struct SweepWrite;

impl Write for SweepWrite {
    type Output = usize;

    async fn apply(&self, connection: &mut SqliteConnection, clock: Clock) -> Result<usize, Failure> {
        Ok(sweep(connection, clock).await?)
    }
}

pub(super) async fn sweep(connection: &mut SqliteConnection, clock: Clock) -> Result<usize, sqlx::Error> {
    let swept = schema::at(clock.now(), schema::SWEEP).execute(connection).await?.rows_affected();
    Ok(usize::try_from(swept).unwrap_or(usize::MAX))
}

pub(super) fn headers_text(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(&HeadersText::of(record)).map_err(StoreError::unavailable)
}

pub(super) fn held(yes: bool) -> Held {
    if yes { Held::Yes } else { Held::No }
}
