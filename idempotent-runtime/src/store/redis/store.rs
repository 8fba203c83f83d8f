//! The Redis store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::Value;

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::columns::token_text;
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, EntryState, Page, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::given_back::{REMEMBERED, given_back};
use crate::store::redis::claim::claim_by_set;
use crate::store::redis::complete::complete;
use crate::store::redis::connection::Argument;
use crate::store::redis::index;
use crate::store::redis::inner::{Inner, NotReplicated};
use crate::store::redis::listing;
use crate::store::redis::resolve::resolve;
use crate::store::redis::value;
use crate::store::resolution::{Resolution, Resolved};

/// The time for which the client of a Cluster may send one call again. A release that arrives even later does no harm,
/// unlike a purge, because its token belongs to no other claim.
const SENT_AGAIN_WITHIN: Duration = Duration::from_secs(5 * 60);

/// A store that keeps claims and records in Redis 6.2 or newer, or in Valkey. With feature `redis-cluster` it also
/// works in a Cluster, and with `redis-sentinel` on the master that Sentinels name.
///
/// Nothing is sent in clear to another machine, unless the URL allows it: [`builder`](Self::builder) lists the forms of
/// the URL. The store reconnects by itself. A clone is cheap and shares everything. If the store was opened by a URL, a
/// message over a separate connection wakes the waiting requests (`in_flight = wait`) of all processes. Otherwise they
/// poll.
///
/// # What Redis can lose
///
/// After a record is lost, a retry runs the handler again.
///
/// - **Eviction:** `maxmemory-policy` must be `noeviction`. A full server rejects new claims with 503 and replays the
///   records that it has. From version 7 on it still accepts the records of claims that it granted.
/// - **Restart:** without `appendonly yes`, a restart loses all writes after the last snapshot.
/// - **Loss of power:** with `appendfsync everysec`, the default, the server loses the last second; with `always`,
///   nothing.
/// - **Failover:** replication is asynchronous, so a failover can lose writes that the replica had not received.
///   [`wait_replicas`](crate::store::RedisStoreBuilder::wait_replicas) reduces that risk and does not remove it.
///
/// If none of this is acceptable, use `PostgresStore`.
///
/// # Listings
///
/// A listing scans the server with `SCAN`, over a connection that no request uses, and reads no headers and no bodies.
/// Among many names of other programs, a page ends after 200 calls with the few entries that it has found. On a busy
/// server or a slow network, it ends after half a second. The next page continues. If the server shrinks its table of
/// names meanwhile, a listing may show an entry on two of its pages.
///
/// Claims have an index of their own, for [`StoreAdmin::claims`]. The name of a claim that expires is sent to the index
/// just after the claim, and no request waits for that. If the process dies in between, or the server is full, only a
/// listing shows the claim.
///
/// # In a Cluster
///
/// While a Cluster moves the slot of a key, the first claim of the key under `AfterCrash::Reject` may be rejected with
/// 503: it reads two names, and one of them may have moved already.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use idempotent_runtime::store::RedisStore;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://127.0.0.1/").await?;
///
/// // Or with options:
/// let store = RedisStore::builder("redis://127.0.0.1/")
///     .prefix("payments:")
///     .wait_replicas(1, Duration::from_millis(500))
///     .open()
///     .await?;
/// idempotent_runtime::install(store)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore(pub(super) Arc<Inner>);

impl RedisStore {
    async fn try_to_claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        if let Some(watch) = self.0.eviction.as_ref().filter(|_| !request.is_of_running) {
            watch.check(&self.0.connection)?;
        }
        let expires = request.after_crash.may_rerun();
        if self.0.claims_by_set && self.0.acknowledged.is_none() && expires {
            match claim_by_set(&self.0, key, &request).await {
                Ok(None) => return Ok(Claim::Acquired { attempt: 1 }),
                Ok(Some(existing)) if !value::may_be_claim(&existing) => return value::existing(&existing),
                // The server must decide who has the claim and whether its lease has expired. A full server rejects the
                // `SET` command even if it would only read.
                Ok(Some(_)) | Err(StoreError::Full) => {}
                Err(error) => return Err(error),
            }
        }
        let token = token_text(request.token);
        let (fingerprint, former) = (request.fingerprint.to_string(), request.other_fingerprint().to_string());
        let keys = [self.0.name(key), self.0.name_of_given_back(key, request.token)];
        let arguments = [
            Argument::Text(&token),
            Argument::Text(&fingerprint),
            Argument::span(request.lease),
            Argument::span(request.ttl),
            Argument::Text(if expires { "1" } else { "0" }),
            Argument::Text(&self.0.index),
            Argument::Text(self.0.claims_of(&keys[0])),
            Argument::Text(&former),
        ];
        let sent_twice = || {
            if !expires {
                self.0.sent_twice.remember(request.token);
            }
        };
        let answer = match self.0.run_acknowledged(&self.0.scripts.claim, &keys, &arguments, sent_twice).await {
            Err(StoreError::Full) => return Err(self.full(key, request.token).await),
            Err(error) => return Err(self.withdraw(key, &request, error).await),
            Ok(answer) => answer,
        };
        match answer {
            Value::Int(attempt) => {
                let attempt = attempt.try_into().map_err(|_| value::damaged("the attempt is out of range"))?;
                if expires && self.0.is_cluster() {
                    index::enter_expiring(&self.0, &keys[0], request.ttl).await;
                }
                Ok(Claim::Acquired { attempt })
            }
            Value::BulkString(existing) => value::existing(&existing),
            other => self.claim_in_texts(key, other).await,
        }
    }

    /// Converts an answer of three texts: what the script found, its fingerprint or the attempt, and what is left to
    /// do.
    async fn claim_in_texts(&self, key: &RecordKey, answer: Value) -> Result<Claim, StoreError> {
        let unreadable = |_| value::damaged("the script's answer cannot be read");
        let (what, text, rest): (String, String, String) = redis::from_redis_value(answer).map_err(unreadable)?;
        if what == "given_back" {
            return Err(given_back());
        }
        if rest == "enter" {
            index::enter(&self.0, key).await?;
        }
        if what == "acquired" {
            let attempt = text.parse().map_err(|_| value::damaged("the attempt is out of range"))?;
            return Ok(Claim::Acquired { attempt });
        }
        let fingerprint = value::fingerprint(&text)?;
        Ok(if what == "in_flight" { Claim::InFlight { fingerprint } } else { Claim::Lapsed { fingerprint } })
    }

    /// Ends a claim that failed because the replicas do not have it. Nothing runs under the claim, and its retry must
    /// not find it in flight. If this fails, the caller gives the claim back too. A claim under which a handler runs
    /// stays, because no other handler may run.
    async fn withdraw(&self, key: &RecordKey, request: &ClaimRequest, failure: StoreError) -> StoreError {
        if !request.is_of_running && matches!(&failure, StoreError::Unavailable(cause) if cause.is::<NotReplicated>()) {
            let ended = match request.after_crash {
                AfterCrash::Rerun => self.renew(key, request.token, Duration::ZERO).await,
                AfterCrash::Reject => self.release(key, request.token).await,
            };
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a claim without its replicas could not be ended at once");
            }
        }
        failure
    }

    /// Returns the answer to a claim on a full server. An earlier try may have made the claim.
    async fn full(&self, key: &RecordKey, token: Token) -> StoreError {
        if self.0.connection.sends_once() {
            return StoreError::Full;
        }
        match self.0.look(key).await {
            Ok(Some(Entry { state: EntryState::Claimed { token: holder, .. }, .. })) if holder == token => {
                StoreError::busy("the server is full, and an earlier try of the call has claimed the key")
            }
            Ok(_) => StoreError::Full,
            Err(error) => error,
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("prefix", &self.0.prefix).finish_non_exhaustive()
    }
}

impl Store for RedisStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.0.checking_connection_limit(self.try_to_claim(key, request)).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let token = token_text(token);
        self.0
            .run(&self.0.scripts.renew, &[self.0.name(key)], &[Argument::Text(&token), Argument::span(lease)])
            .await
            .map(held)
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let tokens: Vec<String> = renewals.iter().map(|renewal| token_text(renewal.token)).collect();
        let runs: Vec<_> = renewals
            .iter()
            .zip(&tokens)
            .map(|(renewal, token)| {
                (self.0.name(&renewal.key), vec![Argument::Text(token), Argument::span(renewal.lease)])
            })
            .collect();
        match self.0.connection.run_many(&self.0.scripts.renew, &runs).await {
            Some(Ok(answers)) => answers.into_iter().map(|answer| Ok(held(answer))).collect(),
            // The renewals are sent one by one, because the server does not know the script, or one of the renewals
            // failed.
            _ => join_all(renewals.iter().map(|renewal| self.renew(&renewal.key, renewal.token, renewal.lease))).await,
        }
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let ended = complete(&self.0, key, token, &record, ttl).await?;
        Ok(held(index::ended(&self.0, key, ended).await))
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let mut keys = vec![self.0.name(key), self.0.name_of_given_back(key, token)];
        // The client of a Cluster repeats a call by itself and does not report it.
        let is_repeated = !self.0.connection.sends_once();
        if is_repeated {
            keys.push(self.0.name_of_given_back(key, Token::unique()));
        }
        let may_arrive = is_repeated || self.0.sent_twice.contains(token);
        let may_arrive = Argument::Text(if may_arrive { "1" } else { "0" });
        let token = token_text(token);
        let (channel, index) = (Argument::Text(&self.0.channel), Argument::Text(&self.0.index));
        let claims = Argument::Text(self.0.claims_of(&keys[0]));
        let message = Inner::message_of(&keys[0]);
        let (token, message) = (Argument::Text(&token), Argument::Text(&message));
        let (remembered, kept) = (Argument::span(REMEMBERED), Argument::span(SENT_AGAIN_WITHIN));
        let arguments = [token, channel, index, remembered, may_arrive, claims, message, kept];
        let ended = self.0.run(&self.0.scripts.release, &keys, &arguments).await?;
        Ok(held(index::ended(&self.0, key, ended).await))
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        self.0.run(&self.0.scripts.extend, &[self.0.name(key)], &[Argument::span(ttl)]).await.map(held)
    }

    async fn changed(&self, key: &RecordKey) {
        match &self.0.listener {
            Some(listener) => listener.ended(Inner::message_of(&self.0.name(key)).as_bytes()).await,
            None => std::future::pending().await,
        }
    }
}

impl StoreAdmin for RedisStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        self.0.checking_connection_limit(self.0.look(key)).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let keys = self.0.names_for_one_call(key);
        let claims = Argument::Text(self.0.claims_of(&keys[0]));
        let arguments = [Argument::Text(&self.0.index), claims, self.0.answer_kept_for()];
        let purged = self.0.connection.run_once(&self.0.scripts.purge, &keys, &arguments).await;
        let purged = purged.map_err(|error| self.0.error(error))?;
        Ok(index::ended(&self.0, key, purged).await > 0)
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        resolve(&self.0, key, token, &resolution).await
    }

    /// Deletes nothing, because Redis deletes expired entries by itself.
    async fn delete_expired(&self) -> Result<usize, StoreError> {
        Ok(0)
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        index::count_unknown_outcomes(&self.0).await
    }

    /// Lists in the order of the server's `SCAN`. Damage within headers or body is not detected.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        listing::page(&self.0, cursor, limit).await
    }

    /// Lists the claims by the sets of their names, without a scan of the server.
    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        index::claims(&self.0, cursor, limit).await.map(Some)
    }
}

fn held(yes: u32) -> Held {
    Held::of(yes > 0)
}
