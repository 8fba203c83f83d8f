//! The set of the claims that never expire: operators see them, however old, without a scan of the whole server.
//!
//! The script of a claim adds its name, and the script that ends the claim removes it. In a Cluster, a script often cannot
//! reach the set. Then the store adds and removes the name, with one more round trip each. A process that dies in between
//! leaves a claim without its name, which the next request with the key adds, or a name without its claim, which the next
//! count removes.

use futures_util::future::join_all;

use crate::key::RecordKey;
use crate::store::entry::{Entry, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::redis::store::RedisStore;

/// How many claims are looked at together.
const TOGETHER: usize = 100;

impl RedisStore {
    /// The set's name. It is no record key, so no listing shows it.
    pub(super) fn index_of(prefix: &str) -> String {
        format!("{prefix}unknown_outcomes")
    }

    /// Enters the name of a claim that was made: an error must not say of the claim that it was never sent or found no room.
    pub(super) async fn enter(&self, key: &RecordKey) -> Result<(), StoreError> {
        self.index("SADD", &self.name(key)).await.map_err(StoreError::unavailable)
    }

    /// Takes the answer of a script that ended a claim or a record. Removes its name from the set if the script could not.
    pub(super) async fn ended(&self, key: &RecordKey, answer: u32) -> u32 {
        if answer == 2 {
            // The claim has ended whether or not this succeeds, and a count finds the name too.
            let _ = self.index("SREM", &self.name(key)).await;
        }
        answer
    }

    async fn index(&self, command: &str, name: &[u8]) -> Result<(), StoreError> {
        let command = redis::cmd(command).arg(&self.0.index).arg(name).to_owned();
        self.0.connection.query(&command).await.map_err(|error| self.error(error))
    }

    pub(super) async fn count_unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        let (mut unknown, mut cursor, mut seen) = (UnknownOutcomes::new(), 0_u64, 0);
        loop {
            let mut scan = redis::cmd("SSCAN");
            scan.arg(&self.0.index).arg(cursor).arg("COUNT").arg(1000);
            let (next, mut names): (u64, Vec<Vec<u8>>) =
                self.0.operators.query(&scan).await.map_err(|error| self.error(error))?;
            names.truncate(UNKNOWN_OUTCOMES_COUNTED - seen);
            seen += names.len();
            for some in names.chunks(TOGETHER) {
                for entry in join_all(some.iter().map(|name| self.verified(name))).await {
                    if let Some(entry) = entry?.filter(Entry::is_unknown_outcome) {
                        *unknown.entry(entry.key.scope().into_owned()).or_default() += 1;
                    }
                }
            }
            cursor = next;
            if cursor == 0 || seen >= UNKNOWN_OUTCOMES_COUNTED {
                return Ok(unknown);
            }
        }
    }

    /// The entry of the name if it is a claim that never expires; otherwise removes the name from the set.
    async fn verified(&self, name: &[u8]) -> Result<Option<Entry>, StoreError> {
        let Some(key) = self.key_of(name) else { return Ok(None) };
        let entry = self.endless(&key).await?;
        if entry.is_some() {
            return Ok(entry);
        }
        self.index("SREM", name).await?;
        // A claim that was made since the look has entered its name already.
        let entry = self.endless(&key).await?;
        if entry.is_some() {
            self.enter(&key).await?;
        }
        Ok(entry)
    }

    async fn endless(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        match self.summary(key).await {
            Ok(entry) => Ok(entry.filter(|entry| entry.expires_in.is_none())),
            // Listings show it.
            Err(StoreError::Damaged(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
