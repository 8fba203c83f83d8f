//! The operations of operators.

use sqlx::Row as _;

use crate::key::RecordKey;
use crate::store::claim::Token;
use crate::store::contract::StoreAdmin;
use crate::store::entry::{Cursor, Entry, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::postgres::failure::{is_ended_before, store_error};
use crate::store::postgres::resolve::resolve;
use crate::store::postgres::retry::{retried, retried_after};
use crate::store::postgres::row::digest;
use crate::store::postgres::statements::Query;
use crate::store::postgres::store::PostgresStore;
use crate::store::resolution::{Resolution, Resolved};
use crate::store::row::unknown_outcomes;

/// The number of newest rows that a listing reads without marks. More than the rows that one search for lingering claims leaves out,
/// and those that arrive before the next search.
const RECENT: i64 = 100_000;

impl StoreAdmin for PostgresStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let digest = digest(key);
        let entry = || async { self.0.statements.entry.query().bind(digest).fetch_optional(self.0.pools.own()).await };
        retried(entry).await?.as_ref().map(Entry::from_row).transpose()
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let digest = digest(key);
        let purge = || async {
            let query = self.0.statements.purge.query().bind(digest).bind("purge");
            query.fetch_optional(self.0.pools.own()).await
        };
        // If the first statement took effect, a second one would remove a claim that was made in the meantime.
        Ok(retried_after(is_ended_before, purge).await?.is_some_and(|row| row.get("alive")))
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        resolve(&self.0, key, token, &resolution).await
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        self.0.expired_deletion.delete_expired().await.map_err(store_error)
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        let most = i64::try_from(UNKNOWN_OUTCOMES_COUNTED).unwrap_or(i64::MAX);
        let count = || async {
            self.0.statements.unknown_outcomes.query().bind(most).fetch_all(self.0.pools.operators()).await
        };
        unknown_outcomes(&retried(count).await?)
    }

    /// Lists in the order of the keys' digests, which are also the cursors.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.page(|| self.0.statements.list.query(), cursor, limit, |query| query).await
    }

    /// Lists in the order of the keys' digests.
    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        // A role that only reads cannot mark claims, so it reads all rows for each page.
        let is_marked = matches!(self.0.expired_deletion.mark_lingering().await, Ok(true));
        let recent = if is_marked { RECENT } else { i64::MAX };
        self.page(|| self.0.statements.claims.query(), cursor, limit, |query| query.bind(recent)).await.map(Some)
    }
}

impl PostgresStore {
    async fn page(
        &self,
        statement: impl Fn() -> Query,
        cursor: Option<Cursor>,
        limit: usize,
        bind_more: impl Fn(Query) -> Query,
    ) -> Result<Page, StoreError> {
        // One row more than the limit shows whether there is a next page.
        let rows = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let Cursor(after) = cursor.unwrap_or_else(|| Cursor(String::new()));
        let list = || async {
            bind_more(statement().bind(after.clone()).bind(rows)).fetch_all(self.0.pools.operators()).await
        };
        Page::from_rows(&retried(list).await?, limit, after, "place")
    }
}
