//! The writes that callers queue. Each runs inside a transaction that holds the write lock.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Arguments as _;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::{Record, unix_millis};
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::claim_decision::Decision;
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::given_back::RememberedTokens;
use crate::store::row::headers_text;
use crate::store::sqlite::bound::{Bound, counted_bytes, counted_owner};
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::failure::{Cause, Failure, store_error};
use crate::store::sqlite::leases;
use crate::store::sqlite::locked::{Context, Decided, LeaseHolder, decide_claim, delete_expired, renewals_of};
use crate::store::sqlite::rows::Kind;
use crate::store::sqlite::schema;

/// A change, which may be applied again after its transaction was rolled back.
pub(super) trait Write: Send + Sync + 'static {
    type Output: Send;

    /// Whether the write is skipped if its caller no longer waits.
    const ONLY_IF_AWAITED: bool = false;

    fn apply(
        &self,
        connection: &mut SqliteConnection,
        context: Context<'_>,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;

    /// Returns the statement that can do this write as one of many rows, and the answer for its caller in that case.
    fn as_row(&self) -> Option<(Kind, Self::Output)> {
        None
    }

    /// Adds the arguments of the row.
    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError> {
        let _ = (arguments, clock);
        Ok(())
    }

    /// Returns the error for the caller if SQLite rejected the write.
    fn rejected(&self, error: Arc<sqlx::Error>) -> StoreError {
        store_error(error)
    }

    /// Returns about how many bytes the write adds to the transaction.
    fn bytes(&self) -> usize {
        0
    }
}

pub(super) struct ClaimWrite {
    key: RecordKey,
    request: ClaimRequest,
    bound: Option<Bound>,
    lease_id: i64,
    given_back: Arc<RememberedTokens>,
}

impl ClaimWrite {
    pub(super) fn new(
        key: RecordKey,
        request: ClaimRequest,
        bound: Option<Bound>,
        given_back: Arc<RememberedTokens>,
    ) -> Self {
        Self { key, request, bound, lease_id: leases::new_id(), given_back }
    }
}

impl Write for ClaimWrite {
    type Output = Claim;

    // Without its caller no handler runs, so the claim would never be completed or released.
    const ONLY_IF_AWAITED: bool = true;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Claim, Failure> {
        self.given_back.check(self.request.token)?;
        // The decision is made again under the write lock, because the state that a reader saw may have changed.
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
        if is_fresh && let Some(bound) = self.bound {
            bound.admit(connection, context, &self.key, &self.request).await?;
        }
        context
            .clock
            .statement(schema::CLAIM)
            .bind(self.key.as_str())
            .bind(self.request.fingerprint.to_string())
            .bind(token_text(self.request.token))
            .bind(attempt)
            .bind(span_millis(self.request.ttl))
            .bind(span_millis(self.request.lease))
            .bind(expires_at(&self.request, context.now()))
            .bind(self.lease_id)
            .bind(counted_owner(self.bound, &self.request))
            .bind(counted_bytes(&self.key, None))
            .execute(connection)
            .await?;
        Ok(Claim::Acquired { attempt })
    }

    /// Returns `None` in a store with a bound, which each claim must check, or if the token was released before.
    fn as_row(&self) -> Option<(Kind, Claim)> {
        let is_usual = self.bound.is_none() && self.given_back.check(self.request.token).is_ok();
        is_usual.then_some((Kind::Claim, Claim::Acquired { attempt: 1 }))
    }

    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError> {
        let (now, ttl, lease) = (clock.now(), span_millis(self.request.ttl), span_millis(self.request.lease));
        arguments.add(self.key.as_str())?;
        arguments.add(self.request.fingerprint.to_string())?;
        arguments.add(token_text(self.request.token))?;
        arguments.add(ttl)?;
        arguments.add(lease)?;
        arguments.add(if lease == 0 { 0 } else { now + lease })?;
        arguments.add(expires_at(&self.request, now))?;
        arguments.add(self.lease_id)?;
        arguments.add(clock.id())
    }

    fn rejected(&self, error: Arc<sqlx::Error>) -> StoreError {
        match Cause::of(&error) {
            Cause::Full => StoreError::Full,
            _ => store_error(error),
        }
    }
}

/// Returns the expiry of a claim that is made now.
fn expires_at(request: &ClaimRequest, now: i64) -> i64 {
    match request.after_crash {
        AfterCrash::Rerun => now + span_millis(request.ttl),
        AfterCrash::Reject => schema::NEVER,
    }
}

/// Keeps the claim forever. Must run under the write lock, so that the claim is still the one that was decided about.
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
        let renewals = renewals_of(connection, context, &self.key).await?;
        let completed = context
            .clock
            .statement(schema::COMPLETE)
            .bind(self.key.as_str())
            .bind(&token)
            .bind(context.clock.after(self.ttl))
            .bind(self.record.fingerprint.to_string())
            .bind(unix_millis(self.record.recorded_at))
            .bind(self.record.status.as_u16())
            .bind(&self.headers)
            .bind(self.record.body_bytes().map(AsRef::<[u8]>::as_ref))
            .bind(renewals)
            .bind(counted_bytes(&self.key, Some((&self.headers, &self.record))))
            .execute(&mut *connection)
            .await?;
        if completed.rows_affected() > 0 {
            return Ok(Held::Yes);
        }
        Ok(Held::of(is_completed_by(connection, context.clock, &self.key, self.token).await?))
    }

    /// Returns `None` if the record expires at once: applied again, the write would not find its own record.
    fn as_row(&self) -> Option<(Kind, Held)> {
        (!self.ttl.is_zero()).then_some((Kind::Complete, Held::Yes))
    }

    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError> {
        arguments.add(self.key.as_str())?;
        arguments.add(token_text(self.token))?;
        arguments.add(clock.now())?;
        arguments.add(clock.after(self.ttl))?;
        arguments.add(self.record.fingerprint.to_string())?;
        arguments.add(unix_millis(self.record.recorded_at))?;
        arguments.add(self.record.status.as_u16())?;
        arguments.add(self.headers.as_str())?;
        arguments.add(self.record.body_bytes().map(AsRef::<[u8]>::as_ref))?;
        arguments.add(counted_bytes(&self.key, Some((&self.headers, &self.record))))
    }

    fn rejected(&self, error: Arc<sqlx::Error>) -> StoreError {
        match Cause::of(&error) {
            Cause::Rejected => StoreError::record_rejected(error),
            _ => store_error(error),
        }
    }

    fn bytes(&self) -> usize {
        self.headers.len() + self.record.payload_bytes()
    }
}

pub(super) struct ExtendWrite {
    pub(super) key: RecordKey,
    pub(super) ttl: Duration,
}

impl Write for ExtendWrite {
    type Output = Held;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Held, Failure> {
        let extend = schema::at(context.now(), schema::EXTEND).bind(self.key.as_str());
        let extended = extend.bind(context.clock.after(self.ttl)).execute(connection).await?;
        Ok(Held::of(extended.rows_affected() > 0))
    }
}

pub(super) struct ReleaseWrite {
    pub(super) key: RecordKey,
    pub(super) token: Token,
    pub(super) given_back: Arc<RememberedTokens>,
}

impl Write for ReleaseWrite {
    type Output = Held;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Held, Failure> {
        let renewals = renewals_of(connection, context, &self.key).await?;
        let release = context.clock.statement(schema::RELEASE).bind(self.key.as_str()).bind(token_text(self.token));
        if release.bind(renewals).execute(&mut *connection).await?.rows_affected() > 0 {
            return Ok(Held::Yes);
        }
        // The token is remembered here, because a claim may be on its way to this thread. No claim of a completed token
        // is.
        if !is_completed_by(connection, context.clock, &self.key, self.token).await? {
            self.given_back.remember(self.token);
        }
        Ok(Held::No)
    }
}

/// Returns whether the record of the key was made by this token.
pub(super) async fn is_completed_by(
    connection: &mut SqliteConnection,
    clock: Clock,
    key: &RecordKey,
    token: Token,
) -> Result<bool, sqlx::Error> {
    let found = schema::at(clock.now(), schema::COMPLETED_BY).bind(key.as_str()).bind(token_text(token));
    Ok(found.fetch_optional(connection).await?.is_some())
}

/// Renews leases in the database, because the file of leases cannot be written.
pub(super) struct RenewWrite(pub(super) Vec<Renewal>);

impl Write for RenewWrite {
    /// The tokens whose leases were renewed.
    type Output = HashSet<String>;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<Self::Output, Failure> {
        let mut renewed = HashSet::new();
        for Renewal { key, token, lease } in &self.0 {
            let holder = LeaseHolder::of(connection, context, key).await?.filter(|holder| !holder.is_over);
            let Some(LeaseHolder { claim, renewals, .. }) = holder else { continue };
            let token = token_text(*token);
            let renew = context
                .clock
                .statement(schema::RENEW)
                .bind(key.as_str())
                .bind(&token)
                .bind(span_millis(*lease))
                .bind(claim.renewals + 1)
                .bind(renewals);
            if renew.execute(&mut *connection).await?.rows_affected() > 0 {
                renewed.insert(token);
            }
        }
        Ok(renewed)
    }
}

/// Changes nothing. The writer repairs the file of leases before each batch, so the answer comes after a repair.
pub(super) struct RepairWrite;

impl Write for RepairWrite {
    type Output = ();

    async fn apply(&self, _: &mut SqliteConnection, _: Context<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

pub(super) struct PurgeWrite {
    pub(super) key: RecordKey,
}

impl Write for PurgeWrite {
    type Output = bool;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<bool, Failure> {
        let renewals = renewals_of(connection, context, &self.key).await?;
        let alive = context.clock.statement(schema::EXISTING).bind(self.key.as_str()).bind(renewals);
        let alive = alive.fetch_optional(&mut *connection).await?;
        sqlx::query(schema::PURGE).bind(self.key.as_str()).execute(connection).await?;
        Ok(alive.is_some())
    }
}

pub(super) struct DeleteExpiredWrite;

impl Write for DeleteExpiredWrite {
    type Output = usize;

    async fn apply(&self, connection: &mut SqliteConnection, context: Context<'_>) -> Result<usize, Failure> {
        delete_expired(connection, context).await
    }
}
