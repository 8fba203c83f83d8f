//! Whether a new row fits: into what the file may take, and into what its owner may take of that.

use bytes::Bytes;
use sqlx::sqlite::SqliteConnection;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{ClaimRequest, Owner};
use crate::store::error::StoreError;
use crate::store::sqlite::failure::Failure;
use crate::store::sqlite::locked::{Context, delete_expired};
use crate::store::sqlite::schema;

/// What the content of the file may take, and what the rows of one owner may take of it.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) max_bytes: u64,
    pub(super) per_owner: u64,
}

impl Bound {
    /// Whether there is room for a new row. What has expired may be room enough.
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

/// What the row has of the owner. Without a bound nothing is counted, which costs nothing then.
pub(super) fn counted_owner(bound: Option<Bound>, request: &ClaimRequest) -> Option<Vec<u8>> {
    bound.and(request.owner).map(owner_bytes)
}

fn owner_bytes(owner: Owner) -> Vec<u8> {
    owner.as_u128().to_be_bytes().to_vec()
}

/// What a row counts for: a fixed cost with its places in the indexes, and its key, headers and body with the rest of the pages that
/// they do not fill. Rows share a page of 4 KiB only as far as whole rows fit into it.
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
