//! The limits on new rows: the bytes that the file may take, and the bytes of it that one owner may take.

use bytes::Bytes;
use sqlx::sqlite::SqliteConnection;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{ClaimRequest, Owner};
use crate::store::error::StoreError;
use crate::store::sqlite::failure::Failure;
use crate::store::sqlite::locked::{Context, delete_expired};
use crate::store::sqlite::schema;

/// The bytes that the content of the file may take, and those of it that the rows of one owner may take.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) max_bytes: u64,
    pub(super) per_owner: u64,
}

impl Bound {
    /// Fails if there is no room for a new row. Deletes expired rows if the file is full.
    pub(super) async fn admit(
        self,
        connection: &mut SqliteConnection,
        context: Context<'_>,
        key: &RecordKey,
        request: &ClaimRequest,
    ) -> Result<(), Failure> {
        if let Some(owner) = request.owner {
            let owned = sqlx::query_scalar(schema::OWNED_BYTES).bind(owner_bytes(owner));
            let owned: Option<i64> = owned.fetch_optional(&mut *connection).await?;
            if owned.unwrap_or_default().saturating_add(counted_bytes(key, None)) > limit(self.per_owner) {
                return Err(StoreError::OverQuota.into());
            }
        }
        for last in [false, true] {
            let used: i64 = sqlx::query_scalar(schema::USED_BYTES).fetch_one(&mut *connection).await?;
            if used < limit(self.max_bytes) {
                return Ok(());
            }
            if last || delete_expired(connection, context).await? == 0 {
                break;
            }
        }
        Err(StoreError::Full.into())
    }
}

/// Returns the owner as the row has it. Without a bound, nothing is counted, which then costs nothing.
pub(super) fn counted_owner(bound: Option<Bound>, request: &ClaimRequest) -> Option<Vec<u8>> {
    bound.and(request.owner).map(owner_bytes)
}

fn owner_bytes(owner: Owner) -> Vec<u8> {
    owner.as_u128().to_be_bytes().to_vec()
}

/// Returns the bytes that a row counts for: a fixed cost, which includes its places in the indexes, and its key,
/// headers and body with the rest of the pages that they do not fill. Rows share a page of 4 KiB only if whole rows fit
/// into it.
pub(super) fn counted_bytes(key: &RecordKey, record: Option<(&str, &Record)>) -> i64 {
    let key = key.as_str().len();
    let payload = key + record.map_or(0, |(headers, record)| headers.len() + record.body_bytes().map_or(0, Bytes::len));
    let on_pages = match payload {
        0..1_200 => payload,
        1_200..1_880 => 2_048,
        1_880..3_900 => 4_096,
        _ => payload + 2_048,
    };
    i64::try_from(320 + key + on_pages).unwrap_or(i64::MAX)
}

fn limit(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
