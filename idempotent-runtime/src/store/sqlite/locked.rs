//! The decisions that are made under the write lock of the database, with the renewed leases.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::key::RecordKey;
use crate::store::claim::{Claim, ClaimRequest, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::token_text;
use crate::store::error::StoreError;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::database_file::DatabaseFile;
use crate::store::sqlite::failure::Failure;
use crate::store::sqlite::leases;
use crate::store::sqlite::leases::{Leases, Renewals, Renewed};
use crate::store::sqlite::schema;
use crate::store::sqlite::watch::ClaimId;

/// The values that each decision needs.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) clock: Clock,
    pub(super) leases: &'a Leases,
    pub(super) file: &'a DatabaseFile,
}

impl Context<'_> {
    /// Returns the same context with a clock that always shows this moment.
    pub(super) fn stopped(self) -> Self {
        Self { clock: self.clock.stopped(), ..self }
    }

    pub(super) fn now(self) -> i64 {
        self.clock.now()
    }
}

/// The decision on a claim.
pub(super) struct Decided {
    pub(super) decision: Decision,
    /// Whether the key has no entry, or an expired one.
    pub(super) is_fresh: bool,
}

/// The claim of a key, expired or not.
pub(super) struct LeaseHolder {
    pub(super) claim: ClaimId,
    pub(super) renewals: Renewals,
    /// Whether the claim can no longer be renewed.
    pub(super) is_over: bool,
}

impl LeaseHolder {
    pub(super) async fn of(
        connection: &mut SqliteConnection,
        context: Context<'_>,
        key: &RecordKey,
    ) -> Result<Option<Self>, Failure> {
        let row = sqlx::query(schema::HOLDER).bind(key.as_str()).fetch_optional(connection).await?;
        let Some(mut claim) = row.as_ref().map(claim_id) else { return Ok(None) };
        Ok(Some(match context.leases.of(claim.lease).await? {
            Some(Renewed { list, renewals, is_over }) => {
                claim.renewals = claim.renewals.max(renewals);
                Self { claim, renewals: list, is_over }
            }
            None => Self { claim, renewals: leases::none(), is_over: false },
        }))
    }
}

fn claim_id(row: &SqliteRow) -> ClaimId {
    ClaimId { lease: row.get("lease_id"), record: row.get("id"), renewals: row.get("renewals") }
}

/// Returns the renewals of the claim of the key.
pub(super) async fn renewals_of(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    key: &RecordKey,
) -> Result<Renewals, Failure> {
    Ok(LeaseHolder::of(connection, context, key).await?.map_or_else(leases::none, |holder| holder.renewals))
}

/// Returns the entry of the key, and its claim unless that has the number `id`.
pub(super) async fn look(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    key: &RecordKey,
    id: Option<i64>,
) -> Result<(Option<StoredState>, Option<LeaseHolder>), Failure> {
    for _ in 0..MOST_LOOKS {
        let holder = LeaseHolder::of(connection, context, key).await?.filter(|holder| Some(holder.claim.lease) != id);
        let renewals = holder.as_ref().map_or_else(leases::none, |holder| holder.renewals.clone());
        let row = context.clock.statement(schema::EXISTING).bind(key.as_str()).bind(renewals);
        let row = row.fetch_optional(&mut *connection).await?;
        let state = row.as_ref().map(StoredState::from_row).transpose()?;
        let other_lease = row.as_ref().map(|row| row.try_get::<Option<i64>, _>("other_lease")).transpose()?.flatten();
        if let (Some(holder), Some(lease)) = (&holder, other_lease)
            && context.leases.has_ended(holder.claim, Duration::from_millis(lease.unsigned_abs())).await?
        {
            continue;
        }
        return Ok((state, holder));
    }
    Err(changing().into())
}

/// Decides on a claim. `id` is the number of the claim itself, which an earlier try of the same write may have made. A
/// claim that is taken over can no longer be renewed.
pub(super) async fn decide_claim(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    key: &RecordKey,
    request: &ClaimRequest,
    id: Option<i64>,
) -> Result<Decided, Failure> {
    if sqlx::query(schema::ANY).bind(key.as_str()).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(Decided { decision: decide(None, request), is_fresh: true });
    }
    for _ in 0..MOST_LOOKS {
        let (state, holder) = look(connection, context, key, id).await?;
        let is_over = holder.as_ref().is_some_and(|holder| holder.is_over);
        let is_fresh = state.is_none();
        let decision = match decide(state, request) {
            // Another claim has fenced the lease of this claim, but did not take it over. The holder of the token needs
            // a new lease.
            Decision::Answer(Claim::Acquired { attempt }) if is_over => {
                return Ok(Decided { decision: Decision::Take { attempt }, is_fresh });
            }
            decision => decision,
        };
        if let (Decision::Take { .. }, Some(LeaseHolder { claim, .. })) = (&decision, holder)
            && !context.leases.fence(&[claim]).await?.contains(&claim.lease)
        {
            // The lease was renewed meanwhile.
            continue;
        }
        if is_fresh {
            // The claim overwrites an expired row.
            context.file.erasure.mark_due();
        }
        return Ok(Decided { decision, is_fresh });
    }
    Err(changing().into())
}

/// Keeps the claim forever. Must run under the write lock, so that the claim is still the one that was decided about.
pub(super) async fn keep(connection: &mut SqliteConnection, key: &RecordKey, token: Token) -> Result<(), sqlx::Error> {
    sqlx::query(schema::KEEP).bind(key.as_str()).bind(token_text(token)).execute(connection).await.map(drop)
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

/// The largest number of times that a row is read. It is read again if its lease was renewed after it was read.
pub(super) const MOST_LOOKS: usize = 3;

pub(super) fn changing() -> StoreError {
    StoreError::busy("the lease of the claim was renewed during each of three tries")
}

/// Deletes a batch of expired entries. Returns how many.
pub(super) async fn delete_expired(connection: &mut SqliteConnection, context: Context<'_>) -> Result<usize, Failure> {
    let context = context.stopped();
    let deleted = schema::at(context.now(), schema::DELETE_EXPIRED).execute(&mut *connection).await?.rows_affected();
    let deleted = usize::try_from(deleted).unwrap_or(usize::MAX);
    let deleted = deleted.saturating_add(delete_expired_claims(connection, context).await?);
    if deleted > 0 {
        context.file.erasure.mark_due();
    }
    Ok(deleted)
}

async fn delete_expired_claims(connection: &mut SqliteConnection, context: Context<'_>) -> Result<usize, Failure> {
    let now = context.now();
    if schema::at(now, schema::ANY_EXPIRED_CLAIM).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let renewals = context.leases.all().await?;
    schema::at(now, schema::CATCH_UP).bind(renewals).execute(&mut *connection).await?;
    let expired = context.clock.statement(schema::EXPIRED_CLAIMS).fetch_all(&mut *connection).await?;
    let (claims, others): (Vec<_>, Vec<_>) =
        expired.iter().partition(|row| row.get::<Option<i64>, _>("lease_id").is_some());
    let claims: Vec<ClaimId> = claims.into_iter().map(claim_id).collect();
    let fenced = if claims.is_empty() { HashSet::new() } else { context.leases.fence(&claims).await? };
    let over: Vec<i64> = others
        .into_iter()
        .map(|row| row.get("id"))
        .chain(claims.iter().filter(|claim| fenced.contains(&claim.lease)).map(|claim| claim.record))
        .collect();
    let over = serde_json::to_string(&over).map_err(StoreError::unavailable)?;
    let deleted = sqlx::query(schema::DELETE).bind(over).execute(connection).await?.rows_affected();
    Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
}
