//! What the writer does for a caller; each runs inside a transaction that holds the write lock.

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
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::claim_decision::Decision;
use crate::store::columns::{span_millis, token_text, unix_millis};
use crate::store::error::StoreError;
use crate::store::sqlite::failure::{Cause, Failure, store_error};
use crate::store::sqlite::leases;
use crate::store::sqlite::leases::Renewals;
use crate::store::sqlite::locked::{Context, Decided, decide_claim, delete_expired, make_room, renewals_of};
use crate::store::sqlite::rows::Kind;
use crate::store::sqlite::schema;

/// One change. It may be applied again after its transaction was rolled back.
pub(super) trait Write: Send + Sync + 'static {
    type Output: Send;

    /// Whether it is skipped if its caller no longer waits.
    const ONLY_IF_AWAITED: bool = false;

    fn apply(
        &self,
        connection: &mut SqliteConnection,
        context: Context<'_>,
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
    key: RecordKey,
    request: ClaimRequest,
    max_bytes: Option<u64>,
    lease_id: i64,
}

impl ClaimWrite {
    pub(super) fn new(key: RecordKey, request: ClaimRequest, max_bytes: Option<u64>) -> Self {
        Self { key, request, max_bytes, lease_id: leases::new_id() }
    }
}

impl Write for ClaimWrite {
    type Output = Claim;

    // Without its caller no handler runs, so the claim would never be completed or released.
    const ONLY_IF_AWAITED: bool = true;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Claim, Failure> {
        // Again, under the write lock: what a reader saw may have changed since.
        let Decided { decision, is_fresh } =
            decide_claim(connection, context, &self.key, &self.request, Some(self.lease_id)).await?;
        let attempt = match decision {
            Decision::Answer(claim) => return Ok(claim),
            Decision::Keep { token, fingerprint } => {
                keep(connection, &self.key, token).await?;
                return Ok(Claim::Lapsed { fingerprint });
            }
            Decision::Take { attempt } => attempt,
        };
        if is_fresh && let Some(max_bytes) = self.max_bytes {
            make_room(connection, context, max_bytes).await?;
        }
        let now = context.now();
        schema::at(now, schema::CLAIM)
            .bind(self.key.as_str())
            .bind(self.request.fingerprint.to_string())
            .bind(token_text(self.request.token))
            .bind(attempt)
            .bind(span_millis(self.request.ttl))
            .bind(span_millis(self.request.lease))
            .bind(expires_at(&self.request, now))
            .bind(self.lease_id)
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
        arguments.add(expires_at(&self.request, now))?;
        arguments.add(self.lease_id)
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
pub(super) async fn keep(connection: &mut SqliteConnection, key: &RecordKey, token: Token) -> Result<(), sqlx::Error> {
    sqlx::query(schema::KEEP).bind(key.as_str()).bind(token_text(token)).execute(connection).await.map(drop)
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

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Held, Failure> {
        let token = token_text(self.token);
        let renewals = renewals_of(connection, context.leases, &self.key).await?;
        let completed = schema::at(context.now(), schema::COMPLETE)
            .bind(self.key.as_str())
            .bind(&token)
            .bind(span_millis(self.ttl))
            .bind(self.record.fingerprint.to_string())
            .bind(unix_millis(self.record.recorded_at))
            .bind(self.record.status.as_u16())
            .bind(&self.headers)
            .bind(self.record.body_bytes().map(AsRef::<[u8]>::as_ref))
            .bind(renewals)
            .execute(&mut *connection)
            .await?;
        if completed.rows_affected() > 0 {
            return Ok(Held::Yes);
        }
        let before = schema::at(context.now(), schema::COMPLETED_BY).bind(self.key.as_str()).bind(&token);
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

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Held, Failure> {
        let now = context.now();
        if self.release(connection, now, leases::none()).await? {
            return Ok(Held::Yes);
        }
        // Without renewals, it may look expired.
        let renewals = renewals_of(connection, context.leases, &self.key).await?;
        Ok(held(renewals != leases::none() && self.release(connection, now, renewals).await?))
    }
}

impl ReleaseWrite {
    async fn release(
        &self,
        connection: &mut SqliteConnection,
        now: i64,
        renewals: Renewals,
    ) -> Result<bool, sqlx::Error> {
        let release = schema::at(now, schema::RELEASE).bind(self.key.as_str()).bind(token_text(self.token));
        Ok(release.bind(renewals).execute(connection).await?.rows_affected() > 0)
    }
}

pub(super) struct PurgeWrite {
    pub(super) key: RecordKey,
}

impl Write for PurgeWrite {
    type Output = bool;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<bool, Failure> {
        let renewals = renewals_of(connection, context.leases, &self.key).await?;
        let purge = schema::at(context.now(), schema::PURGE).bind(self.key.as_str()).bind(renewals);
        let purged = purge.fetch_optional(connection).await?;
        Ok(purged.is_some_and(|row| row.get("alive")))
    }
}

pub(super) struct DeleteExpiredWrite;

impl Write for DeleteExpiredWrite {
    type Output = usize;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<usize, Failure> {
        delete_expired(connection, context).await
    }
}

pub(super) fn headers_text(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(&HeadersText::of(record)).map_err(StoreError::unavailable)
}

pub(super) fn held(yes: bool) -> Held {
    if yes { Held::Yes } else { Held::No }
}
