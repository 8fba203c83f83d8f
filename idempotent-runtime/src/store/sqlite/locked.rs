//! What is decided under the write lock of the database, with the leases that were renewed.

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::key::RecordKey;
use crate::store::claim::{Claim, ClaimRequest};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::error::StoreError;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::failure::Failure;
use crate::store::sqlite::leases;
use crate::store::sqlite::leases::{ClaimId, Leases, Renewals};
use crate::store::sqlite::schema;

/// By what is decided.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) clock: Clock,
    pub(super) leases: &'a Leases,
}

impl Context<'_> {
    /// For what shall happen in one moment.
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
    /// The key has no entry, or an expired one.
    pub(super) is_fresh: bool,
}

/// What becomes of a claim. `id` is its own number: an earlier try of the same write may have made it. What it takes over
/// cannot be renewed any more.
pub(super) async fn decide_claim(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    key: &RecordKey,
    request: &ClaimRequest,
    id: Option<i64>,
) -> Result<Decided, Failure> {
    for _ in 0..MOST_LOOKS {
        let now = context.now();
        let holder = holder(connection, key).await?.filter(|&(holder, _)| Some(holder) != id);
        let renewed = match holder {
            Some((holder, _)) => context.leases.of(holder).await?,
            None => None,
        };
        let is_over = renewed.as_ref().is_some_and(|renewed| renewed.is_over);
        let renewals = renewed.map_or_else(leases::none, |renewed| renewed.renewals);
        let row = schema::at(now, schema::EXISTING_RENEWED).bind(key.as_str()).bind(renewals);
        let row = row.fetch_optional(&mut *connection).await?;
        let existing = row.as_ref().map(StoredState::from_row).transpose()?;
        let is_fresh = existing.is_none();
        let decision = match decide(existing, request) {
            // Another claim has fenced its lease and did not take it over. The holder of the token needs a new one.
            Decision::Answer(Claim::Acquired { attempt }) if is_over => {
                return Ok(Decided { decision: Decision::Take { attempt }, is_fresh });
            }
            decision => decision,
        };
        if let (Decision::Take { .. }, Some(claim)) = (&decision, holder)
            && !context.leases.fence(now, &[claim]).await?.contains(&claim.0)
        {
            // It was renewed meanwhile.
            continue;
        }
        return Ok(Decided { decision, is_fresh });
    }
    Err(StoreError::unavailable("the lease of the claim was renewed at each of three looks").into())
}

/// Each look but the last one meets a renewal since the row was read.
const MOST_LOOKS: usize = 3;

/// The claim of the key, expired or not.
async fn holder(connection: &mut SqliteConnection, key: &RecordKey) -> Result<Option<ClaimId>, sqlx::Error> {
    let row = sqlx::query(schema::HOLDER).bind(key.as_str()).fetch_optional(connection).await?;
    Ok(row.map(|row| (row.get("lease_id"), row.get("id"))))
}

/// The renewals of the claim of the key.
pub(super) async fn renewals_of(
    connection: &mut SqliteConnection,
    leases: &Leases,
    key: &RecordKey,
) -> Result<Renewals, Failure> {
    let renewed = match holder(connection, key).await? {
        Some((holder, _)) => leases.of(holder).await?,
        None => None,
    };
    Ok(renewed.map_or_else(leases::none, |renewed| renewed.renewals))
}

/// What has expired may be room enough.
pub(super) async fn make_room(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    max_bytes: u64,
) -> Result<(), Failure> {
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    for last in [false, true] {
        let used: i64 = sqlx::query_scalar(schema::USED_BYTES).fetch_one(&mut *connection).await?;
        if used < max_bytes {
            return Ok(());
        }
        if last || delete_expired(connection, context).await? == 0 {
            break;
        }
    }
    Err(StoreError::Full.into())
}

/// Deletes a batch of what has expired, and says how many.
pub(super) async fn delete_expired(connection: &mut SqliteConnection, context: Context<'_>) -> Result<usize, Failure> {
    let now = context.now();
    let deleted = schema::at(now, schema::DELETE_EXPIRED).execute(&mut *connection).await?.rows_affected();
    let deleted = usize::try_from(deleted).unwrap_or(usize::MAX);
    Ok(deleted.saturating_add(delete_expired_claims(connection, context.leases, now).await?))
}

async fn delete_expired_claims(connection: &mut SqliteConnection, leases: &Leases, now: i64) -> Result<usize, Failure> {
    if schema::at(now, schema::EXPIRED_CLAIMS).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let renewals = leases.all().await?;
    schema::at(now, schema::CATCH_UP).bind(renewals).execute(&mut *connection).await?;
    let expired = schema::at(now, schema::EXPIRED_CLAIMS).fetch_all(&mut *connection).await?;
    let claim = |row: &SqliteRow| Some((row.get::<Option<i64>, _>("lease_id")?, row.get("id")));
    let claims: Vec<ClaimId> = expired.iter().filter_map(claim).collect();
    let fenced = leases.fence(now, &claims).await?;
    let over: Vec<i64> = expired
        .iter()
        .filter(|row| row.get::<Option<i64>, _>("lease_id").is_none_or(|claim| fenced.contains(&claim)))
        .map(|row| row.get("id"))
        .collect();
    let over = serde_json::to_string(&over).map_err(StoreError::unavailable)?;
    let deleted = sqlx::query(schema::DELETE).bind(over).execute(connection).await?.rows_affected();
    Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
}
