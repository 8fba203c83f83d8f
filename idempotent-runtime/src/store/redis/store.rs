//! The store itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{FromRedisValue, RedisError, Value};

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::columns::{span_millis, token_text};
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, EntryState, Page, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::given_back::{REMEMBERED, RememberedTokens, given_back};
use crate::store::redis::connection::{Acknowledged, Argument, Connection};
use crate::store::redis::listener::Listener;
use crate::store::redis::names;
use crate::store::redis::scripts::{Scripts, Source};
use crate::store::redis::value;

/// Keeps claims and records in Redis or Valkey, version 6.2 or newer; with feature `redis-cluster` also in a Cluster.
///
/// It reconnects by itself. A clone is cheap and shares everything. If the store was opened by a URL, a message over a
/// connection of its own wakes the waiting requests (`in_flight = wait`) of all processes. Otherwise they poll.
///
/// # What Redis can lose
///
/// A lost record means that a retry runs again.
///
/// - **Eviction:** `maxmemory-policy` must be `noeviction`. A full server rejects new claims with 503 and replays what it
///   has. From version 7 on it still accepts the records of claims that it granted.
/// - **Restart:** without `appendonly yes`, a restart loses what came after the last snapshot.
/// - **Loss of power:** with `appendfsync everysec`, the default, it loses the last second; with `always`, nothing.
/// - **Failover:** replication is asynchronous, so a failover can lose what the replica had not received.
///   [`wait_replicas`](crate::store::RedisStoreBuilder::wait_replicas) reduces that risk and does not remove it.
///
/// If none of this is acceptable, use `PostgresStore`.
///
/// # Listings
///
/// A listing goes through the server with `SCAN`, over a connection that no request uses, and reads no headers and no bodies. If
/// the server shrinks its table of names meanwhile, a listing may tell an entry on two of its pages.
///
/// # In a Cluster
///
/// While a Cluster moves the slot of a key, the first claim of the key under `AfterCrash::Reject` may be rejected with 503: it
/// reads two names, and one of them may have moved already.
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

pub(super) struct Inner {
    pub(super) connection: Connection,
    /// The connection for listings and counts.
    pub(super) operators: Connection,
    pub(super) acknowledged: Option<Acknowledged>,
    pub(super) listener: Option<Listener>,
    pub(super) channel: String,
    pub(super) prefix: String,
    /// The name of the set of claims that never expire.
    pub(super) index: String,
    pub(super) scripts: Scripts,
    pub(super) longest_value: usize,
    /// Of claims that never expire and went out twice: after the release of one, the other may still arrive.
    pub(super) sent_twice: RememberedTokens,
    /// From version 7 on, `SET` returns the existing value if it writes nothing.
    pub(super) claims_by_set: bool,
}

impl RedisStore {
    pub(super) fn name(&self, key: &RecordKey) -> Vec<u8> {
        names::of(&self.0.prefix, key)
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[Vec<u8>],
        arguments: &[Argument<'_>],
    ) -> Result<T, StoreError> {
        self.0.connection.run(script, keys, arguments).await.map_err(|error| self.error(error))
    }

    /// The existing value, or the first claim of the key, by one command: it is faster than a script.
    async fn claim_by_set(
        &self,
        key: &RecordKey,
        token: &str,
        request: &ClaimRequest,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let ttl = span_millis(request.ttl);
        let mut set = redis::cmd("SET");
        set.arg(self.name(key)).arg(value::claimed(token, request)).arg("NX").arg("GET").arg("PX").arg(ttl);
        self.0.connection.query(&set).await.map_err(|error| self.error(error))
    }

    /// Runs a script, and waits for the replicas if the builder asked for that.
    async fn run_acknowledged<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[Vec<u8>],
        arguments: &[Argument<'_>],
        before_second: impl FnOnce(),
    ) -> Result<T, StoreError> {
        let Some(acknowledged) = &self.0.acknowledged else {
            let run = self.0.connection.run_and_tell(script, keys, arguments, before_second).await;
            return run.map_err(|error| self.error(error));
        };
        let run = acknowledged.run(script, keys, arguments, before_second).await;
        let (answer, replicas) = run.map_err(|error| self.error(error))?;
        if replicas < acknowledged.replicas {
            return Err(StoreError::unavailable(NotReplicated { replicas, wanted: acknowledged.replicas }));
        }
        Ok(answer)
    }

    pub(super) async fn look(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let (value, left, now): (Option<Vec<u8>>, i64, i64) =
            self.run(&self.0.scripts.look, &[self.name(key)], &[]).await?;
        value.map(|value| value::entry(key.clone(), &value, left, now)).transpose()
    }

    pub(super) fn error(&self, error: RedisError) -> StoreError {
        // Before version 7 the error of a command in a script comes inside of a text.
        let text = error.to_string();
        let is = |code: &str| error.code() == Some(code) || text.split([' ', '-']).any(|word| word == code);
        if is("OOM") {
            StoreError::Full
        } else if ["invalid bulk length", "proto-max-bulk-len"].iter().any(|what| text.contains(what)) {
            StoreError::record_too_large(error)
        } else if is("WRONGTYPE") {
            StoreError::damaged("the key holds no string: another program has written it")
        } else if error.is_connection_refusal() && self.0.connection.sends_once() {
            StoreError::not_sent(error)
        } else {
            StoreError::unavailable(error)
        }
    }

    /// The claim's answer from a server that is full. A try before the last one may have made the claim.
    async fn full(&self, key: &RecordKey, token: Token) -> StoreError {
        if self.0.connection.sends_once() {
            return StoreError::Full;
        }
        match self.look(key).await {
            Ok(Some(Entry { state: EntryState::Claimed { token: holder, .. }, .. })) if holder == token => {
                StoreError::unavailable("the server is full, and an earlier try of the call has claimed the key")
            }
            Ok(_) => StoreError::Full,
            Err(error) => error,
        }
    }

    /// Whether the server closes the connection over this value: it was sent twice by now. The server says why, but its client may
    /// still be writing when the connection ends, and never reads that. A server that answers the next call is alive.
    async fn hangs_up_on(&self, value: &str, error: &StoreError, key: &RecordKey) -> bool {
        let StoreError::Unavailable(error) = error else { return false };
        let is_closed = error.downcast_ref::<RedisError>().is_some_and(RedisError::is_connection_dropped);
        is_closed && value.len() >= SMALLEST_LIMIT && self.look(key).await.is_ok()
    }

    /// `None` for a name of another store or program.
    pub(super) fn key_of(&self, name: &[u8]) -> Option<RecordKey> {
        names::key_in(&self.0.prefix, name)
    }
}

/// The server allows no shorter `proto-max-bulk-len`.
const SMALLEST_LIMIT: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("Redis closes the connection when it gets the record, as it does over a value above proto-max-bulk-len")]
struct HangsUp;

#[derive(Debug, thiserror::Error)]
#[error("the record has {length} bytes as text, and Redis takes {longest} (proto-max-bulk-len)")]
struct TooLong {
    length: usize,
    longest: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("only {replicas} of the wanted {wanted} replicas have acknowledged the write in time")]
struct NotReplicated {
    replicas: usize,
    wanted: usize,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("prefix", &self.0.prefix).finish_non_exhaustive()
    }
}

fn millis(span: Duration) -> Argument<'static> {
    Argument::Millis(span_millis(span).unsigned_abs())
}

impl Store for RedisStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let token = token_text(request.token);
        let expires = request.after_crash == AfterCrash::Rerun;
        if self.0.claims_by_set && self.0.acknowledged.is_none() && expires {
            match self.claim_by_set(key, &token, &request).await {
                Ok(None) => return Ok(Claim::Acquired { attempt: 1 }),
                // The command was sent twice, because the connection broke.
                Ok(Some(existing)) if existing == value::claimed(&token, &request).as_bytes() => {
                    return Ok(Claim::Acquired { attempt: 1 });
                }
                Ok(Some(existing)) if !value::may_be_claim(&existing) => return value::existing(&existing),
                // The server must decide whose claim it is and whether its lease has expired. A full server rejects the
                // command even if it would only read.
                Ok(Some(_)) | Err(StoreError::Full) => {}
                Err(error) => return Err(error),
            }
        }
        let fingerprint = request.fingerprint.to_string();
        let arguments = [
            Argument::Text(&token),
            Argument::Text(&fingerprint),
            millis(request.lease),
            millis(request.ttl),
            Argument::Text(if expires { "1" } else { "0" }),
            Argument::Text(&self.0.index),
        ];
        let unreadable = |_| value::damaged("the script's answer cannot be read");
        let keys = [self.name(key), self.name_of_given_back(key, request.token)];
        let sent_twice = || {
            if !expires {
                self.0.sent_twice.remember(request.token);
            }
        };
        let answer = match self.run_acknowledged(&self.0.scripts.claim, &keys, &arguments, sent_twice).await {
            Err(StoreError::Full) => return Err(self.full(key, request.token).await),
            answer => answer?,
        };
        match answer {
            Value::Int(attempt) => {
                let attempt = attempt.try_into().map_err(|_| value::damaged("the attempt is out of range"))?;
                Ok(Claim::Acquired { attempt })
            }
            Value::BulkString(existing) => value::existing(&existing),
            other => {
                let (what, text, rest): (String, String, String) =
                    redis::from_redis_value(other).map_err(unreadable)?;
                if what == "given_back" {
                    return Err(given_back());
                }
                if rest == "enter" {
                    self.enter(key).await?;
                }
                if what == "acquired" {
                    let attempt = text.parse().map_err(|_| value::damaged("the attempt is out of range"))?;
                    return Ok(Claim::Acquired { attempt });
                }
                let fingerprint = value::fingerprint(&text)?;
                Ok(if what == "in_flight" { Claim::InFlight { fingerprint } } else { Claim::Lapsed { fingerprint } })
            }
        }
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let token = token_text(token);
        self.run(&self.0.scripts.renew, &[self.name(key)], &[Argument::Text(&token), millis(lease)]).await.map(held)
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let tokens: Vec<String> = renewals.iter().map(|renewal| token_text(renewal.token)).collect();
        let runs: Vec<_> = renewals
            .iter()
            .zip(&tokens)
            .map(|(renewal, token)| (self.name(&renewal.key), vec![Argument::Text(token), millis(renewal.lease)]))
            .collect();
        match self.0.connection.run_many(&self.0.scripts.renew, &runs).await {
            Some(Ok(answers)) => answers.into_iter().map(|answer| Ok(held(answer))).collect(),
            // Renew them one by one: the server does not know the script, or one of the renewals fails.
            _ => join_all(renewals.iter().map(|renewal| self.renew(&renewal.key, renewal.token, renewal.lease))).await,
        }
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let value = value::completed(token, &record)?;
        if value.len() > self.0.longest_value {
            return Err(StoreError::record_too_large(TooLong { length: value.len(), longest: self.0.longest_value }));
        }
        let token = token_text(token);
        let (channel, index) = (Argument::Text(&self.0.channel), Argument::Text(&self.0.index));
        let arguments = [Argument::Text(&token), Argument::Text(&value), millis(ttl), channel, index];
        match self.run_acknowledged(&self.0.scripts.complete, &[self.name(key)], &arguments, || ()).await {
            Ok(ended) => Ok(held(self.ended(key, ended).await)),
            Err(error) if self.hangs_up_on(&value, &error, key).await => Err(StoreError::record_too_large(HangsUp)),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let keys = [self.name(key), self.name_of_given_back(key, token)];
        let may_arrive = Argument::Text(if self.0.sent_twice.contains(token) { "1" } else { "0" });
        let token = token_text(token);
        let (channel, index) = (Argument::Text(&self.0.channel), Argument::Text(&self.0.index));
        let arguments = [Argument::Text(&token), channel, index, millis(REMEMBERED), may_arrive];
        let ended = self.run(&self.0.scripts.release, &keys, &arguments).await?;
        Ok(held(self.ended(key, ended).await))
    }

    async fn changed(&self, key: &RecordKey) {
        match &self.0.listener {
            Some(listener) => listener.ended(&self.name(key)).await,
            None => std::future::pending().await,
        }
    }
}

impl StoreAdmin for RedisStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        self.look(key).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let arguments = [Argument::Text(&self.0.index)];
        let purged = self.0.connection.run_once(&self.0.scripts.purge, &[self.name(key)], &arguments).await;
        let purged = purged.map_err(|error| self.error(error))?;
        Ok(self.ended(key, purged).await > 0)
    }

    /// Redis does it by itself.
    async fn delete_expired(&self) -> Result<usize, StoreError> {
        Ok(0)
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        self.count_unknown_outcomes().await
    }

    /// In the order of the server's `SCAN`. Damage within headers or body does not show.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.page(cursor, limit).await
    }
}

fn held(yes: u32) -> Held {
    Held::of(yes > 0)
}
