//! The sets with the names of all claims. With them, operators find running, stuck and unknown claims without a scan of
//! the whole server.
//!
//! Claims that never expire have a set of their own. The script of such a claim adds the name, and the script that ends
//! the claim removes it. In a Cluster, a script often cannot reach the set. Then the store adds and removes the name,
//! with one more round trip each. If the process dies before that, a claim has no name, or a name has no claim. The
//! next request with the key adds the missing name. The next count removes a name without a claim.
//!
//! The names of claims that expire are sorted by their expiry. A claim by `SET` is granted before its name is in the
//! set: the name follows on the same connection, with the names of all claims of its batch, and no request waits for it.
//! If the process dies in between, only a listing shows the claim. The script that ends the claim removes the name. In a
//! Cluster, the names are spread over several sets, so the store removes the name, and no request waits for that either.
//! The name of an expired claim is removed when operators read it, and with each count of unknown outcomes.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::RedisResult;

use crate::key::RecordKey;
use crate::store::entry::{Cursor, Entry, EntryState, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::redis::inner::Inner;
use crate::store::redis::listing::{self, Found, Names, Position, TOGETHER};
use crate::store::redis::unawaited::after;

/// The number of sets that share the claims that expire in a Cluster. A single set would be on a single server.
const SETS_IN_CLUSTER: usize = 16;

/// The number of expired names in each set that one count of unknown outcomes checks.
const EXPIRED_AT_ONCE: usize = 100;

/// Returns the name of the set. The name is no record key, so no listing shows it.
pub(super) fn name(prefix: &str) -> String {
    format!("{prefix}unknown_outcomes")
}

/// Returns the names of the sets of claims that expire.
pub(super) fn names_of_expiring(prefix: &str, is_cluster: bool) -> Vec<String> {
    if is_cluster {
        (0..SETS_IN_CLUSTER).map(|number| format!("{prefix}claims:{number}")).collect()
    } else {
        vec![format!("{prefix}claims")]
    }
}

/// Adds the name of a claim that was made. The error must not say that the claim was never sent, or that the store is
/// full.
pub(super) async fn enter(inner: &Inner, key: &RecordKey) -> Result<(), StoreError> {
    let enter = redis::cmd("SADD").arg(&inner.index).arg(inner.name(key)).to_owned();
    let entered: Result<(), _> = inner.connection.query(&enter).await.map_err(|error| inner.error(error));
    entered.map_err(StoreError::unavailable)
}

/// Sends the name of a claim that was made and expires.
pub(super) async fn enter_expiring(inner: &Inner, name: &[u8], ttl: Duration) {
    inner.unawaited.enter(inner.claims_of(name), [(name, ttl)]).await;
}

/// Takes the answer of a script that ended a claim or a record. Removes the name from the sets if the script could not.
/// Returns the answer.
pub(super) async fn ended(inner: &Inner, key: &RecordKey, answer: u32) -> u32 {
    // Most claims end here, because the script has removed their names.
    if answer != 2 && !inner.is_cluster() {
        return answer;
    }
    let name = inner.name(key);
    if answer == 2 {
        let remove = redis::cmd("SREM").arg(&inner.index).arg(&name).to_owned();
        // The claim has ended even if this fails. A count removes the name later.
        let _: RedisResult<()> = inner.connection.query(&remove).await;
    }
    if inner.is_cluster() && (1..=2).contains(&answer) {
        inner.unawaited.send(redis::cmd("ZREM").arg(inner.claims_of(&name)).arg(&name).to_owned()).await;
    }
    answer
}

/// Returns the claims in the order in which the servers scan their sets.
pub(super) async fn claims(inner: &Inner, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
    if cursor.is_none() && !inner.is_cluster() {
        // The answer comes after all names that this process has sent have arrived.
        let look = redis::cmd("EXISTS").arg(&inner.claims).to_owned();
        let _: u64 = inner.connection.query(&look).await.map_err(|error| inner.error(error))?;
    }
    listing::page_of(&Claims { inner, sets: Set::all(inner) }, cursor, limit).await
}

struct Claims<'a> {
    inner: &'a Inner,
    sets: Vec<Set<'a>>,
}

impl Names for Claims<'_> {
    fn inner(&self) -> &Inner {
        self.inner
    }

    fn sources(&self) -> usize {
        self.sets.len()
    }

    async fn some(&self, position: &Position, count: usize) -> RedisResult<(u64, Vec<Vec<u8>>)> {
        self.sets[position.source].scan(self.inner, position.scan.unwrap_or_default(), count).await
    }

    async fn read(&self, source: usize, keys: Vec<RecordKey>) -> Result<Vec<Found>, StoreError> {
        let members = members(self.inner, self.sets[source], &keys).await?;
        Ok(members.into_iter().map(|entry| (entry.key.clone(), Ok(entry))).collect())
    }
}

#[derive(Clone, Copy)]
struct Set<'a> {
    name: &'a str,
    /// Whether the set has the claims that never expire.
    is_endless: bool,
}

/// A name, and the expiry of its claim.
type Scored = (Vec<u8>, Vec<u8>);

impl<'a> Set<'a> {
    fn endless(inner: &'a Inner) -> Self {
        Self { name: &inner.index, is_endless: true }
    }

    fn expiring(inner: &'a Inner) -> impl Iterator<Item = Self> {
        inner.claims.iter().map(|name| Self { name, is_endless: false })
    }

    fn all(inner: &'a Inner) -> Vec<Self> {
        [Self::endless(inner)].into_iter().chain(Self::expiring(inner)).collect()
    }

    async fn scan(self, inner: &Inner, cursor: u64, count: usize) -> RedisResult<(u64, Vec<Vec<u8>>)> {
        let mut scan = redis::cmd(if self.is_endless { "SSCAN" } else { "ZSCAN" });
        scan.arg(self.name).arg(cursor).arg("COUNT").arg(count);
        if self.is_endless {
            return inner.operators.query(&scan).await;
        }
        let (next, scored): (u64, Vec<Scored>) = inner.operators.query(&scan).await?;
        Ok((next, scored.into_iter().map(|(name, _)| name).collect()))
    }

    fn holds(self, entry: &Entry) -> bool {
        matches!(entry.state, EntryState::Claimed { .. }) && entry.expires_in.is_none() == self.is_endless
    }

    async fn enter(self, inner: &Inner, entry: &Entry) -> Result<(), StoreError> {
        let mut enter = redis::cmd(if self.is_endless { "SADD" } else { "ZADD" });
        enter.arg(self.name);
        if let Some(left) = entry.expires_in {
            enter.arg(after(left));
        }
        enter.arg(inner.name(&entry.key));
        inner.operators.query(&enter).await.map_err(|error| inner.error(error))
    }

    async fn remove(self, inner: &Inner, keys: &[RecordKey]) -> Result<(), StoreError> {
        let mut remove = redis::cmd(if self.is_endless { "SREM" } else { "ZREM" });
        remove.arg(self.name).arg(keys.iter().map(|key| inner.name(key)).collect::<Vec<_>>());
        inner.operators.query(&remove).await.map_err(|error| inner.error(error))
    }
}

/// Returns the entries of those names that belong to claims of this set. Removes the other names from it.
async fn members(inner: &Inner, set: Set<'_>, keys: &[RecordKey]) -> Result<Vec<Entry>, StoreError> {
    let (mut members, others) = sorted_out(inner, set, keys).await?;
    if others.is_empty() {
        return Ok(members);
    }
    set.remove(inner, &others).await?;
    // A claim that was made since the first look has already entered its name.
    let (again, _) = sorted_out(inner, set, &others).await?;
    for entry in &again {
        set.enter(inner, entry).await?;
    }
    members.extend(again);
    Ok(members)
}

async fn sorted_out(
    inner: &Inner,
    set: Set<'_>,
    keys: &[RecordKey],
) -> Result<(Vec<Entry>, Vec<RecordKey>), StoreError> {
    let (mut members, mut others) = (Vec::new(), Vec::new());
    for (key, found) in keys.iter().zip(listing::summaries(inner, keys).await) {
        match found {
            Ok(Some(entry)) if set.holds(&entry) => members.push(entry),
            // The listing of all entries shows damaged ones.
            Ok(_) | Err(StoreError::Damaged(_)) => others.push(key.clone()),
            Err(error) => return Err(error),
        }
    }
    Ok((members, others))
}

fn keys_of(inner: &Inner, names: &[Vec<u8>]) -> Vec<RecordKey> {
    names.iter().filter_map(|name| inner.key_of(name)).collect()
}

pub(super) async fn count_unknown_outcomes(inner: &Inner) -> Result<UnknownOutcomes, StoreError> {
    try_join_all(Set::expiring(inner).map(|set| remove_expired_names(inner, set))).await?;
    let (mut unknown, mut cursor, mut seen) = (UnknownOutcomes::new(), 0_u64, 0);
    let set = Set::endless(inner);
    loop {
        let scanned = set.scan(inner, cursor, 1000).await;
        let (next, mut names) = scanned.map_err(|error| inner.error(error))?;
        names.truncate(UNKNOWN_OUTCOMES_COUNTED - seen);
        seen += names.len();
        for some in names.chunks(TOGETHER) {
            let claims = members(inner, set, &keys_of(inner, some)).await?;
            for entry in claims.iter().filter(|entry| entry.is_unknown_outcome()) {
                *unknown.entry(entry.key.scope().into_owned()).or_default() += 1;
            }
        }
        cursor = next;
        if cursor == 0 || seen >= UNKNOWN_OUTCOMES_COUNTED {
            return Ok(unknown);
        }
    }
}

/// Removes the names of claims that have expired. The names of claims that were renewed get a later time.
async fn remove_expired_names(inner: &Inner, set: Set<'_>) -> Result<(), StoreError> {
    let mut expired = redis::cmd("ZRANGE");
    expired.arg(set.name).arg("-inf").arg(after(Duration::ZERO)).arg("BYSCORE");
    expired.arg("LIMIT").arg(0).arg(EXPIRED_AT_ONCE);
    let names: Vec<Vec<u8>> = inner.operators.query(&expired).await.map_err(|error| inner.error(error))?;
    for entry in members(inner, set, &keys_of(inner, &names)).await? {
        set.enter(inner, &entry).await?;
    }
    Ok(())
}
