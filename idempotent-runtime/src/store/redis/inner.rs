//! The state that all clones of a store share: connections, names and scripts.

use std::pin::pin;
use std::sync::Arc;

use redis::{FromRedisValue, RedisError};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::hexadecimal::hexadecimal;
use crate::key::RecordKey;
use crate::store::batch::batcher::Batcher;
use crate::store::claim::Token;
use crate::store::entry::Entry;
use crate::store::error::{StoreError, Waited};
use crate::store::given_back::{REMEMBERED, RememberedTokens};
use crate::store::line::Call;
use crate::store::redis::batched::InOneCall;
use crate::store::redis::batched_claim::InPipeline;
use crate::store::redis::batched_completion::InScript;
use crate::store::redis::connection::{Acknowledged, Argument, Connection};
use crate::store::redis::connection_limit::is_about_connections;
use crate::store::redis::eviction::EvictionWatch;
use crate::store::redis::given_back;
use crate::store::redis::listener::Listener;
use crate::store::redis::names;
use crate::store::redis::scripts::{Scripts, Source};
use crate::store::redis::unawaited::Unawaited;
use crate::store::redis::value;

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
    /// The names of the sets of claims that expire. There are several in a Cluster.
    pub(super) claims: Vec<String>,
    pub(super) claiming: Arc<Batcher<InOneCall<InPipeline>>>,
    pub(super) completing: Arc<Batcher<InOneCall<InScript>>>,
    pub(super) unawaited: Unawaited,
    pub(super) scripts: Scripts,
    /// The check for eviction. `None` if eviction is allowed.
    pub(super) eviction: Option<EvictionWatch>,
    pub(super) longest_value: usize,
    /// The tokens of claims that never expire and were sent twice. After the release of one, the other may still
    /// arrive.
    pub(super) sent_twice: RememberedTokens,
    /// Whether `SET` returns the existing value if it writes nothing. It does from version 7 on.
    pub(super) claims_by_set: bool,
}

impl Inner {
    pub(super) fn name(&self, key: &RecordKey) -> Vec<u8> {
        names::of(&self.prefix, key)
    }

    /// Returns the message about the end of a claim: a digest of the name, as 64 hexadecimal digits. Channels have
    /// neither databases nor key patterns, so users who may not read the key may receive the message.
    pub(super) fn message_of(name: &[u8]) -> String {
        hexadecimal(&Sha256::digest(name))
    }

    /// Returns the set of claims that expire which contains this name.
    pub(super) fn claims_of(&self, name: &[u8]) -> &str {
        match self.claims.as_slice() {
            [only] => only,
            sets => &sets[usize::from(given_back::slot(name)) % sets.len()],
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        !self.connection.sends_once()
    }

    /// Parses a name. Returns `None` for a name of another store or program.
    pub(super) fn key_of(&self, name: &[u8]) -> Option<RecordKey> {
        names::key_in(&self.prefix, name)
    }

    /// Returns the name of the mark of a claim of `key` by `token`. The name is no record key, so no listing shows it.
    pub(super) fn name_of_given_back(&self, key: &RecordKey, token: Token) -> Vec<u8> {
        given_back::name(&self.prefix, &self.name(key), token)
    }

    /// Returns the name of the key, and a name that no other call has. The client of a Cluster may send a call again by
    /// itself. The second name keeps the first answer, so that the second run does not see the effect of the first.
    pub(super) fn names_for_one_call(&self, key: &RecordKey) -> [Vec<u8>; 2] {
        [self.name(key), self.name_of_given_back(key, Token::unique())]
    }

    /// Returns the time for which the second of these names keeps the answer.
    pub(super) fn answer_kept_for(&self) -> Argument<'static> {
        if self.connection.sends_once() { Argument::Millis(0) } else { Argument::span(REMEMBERED) }
    }

    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Argument<'_>],
    ) -> Result<T, StoreError> {
        self.connection.run(script, keys, arguments).await.map_err(|error| self.error(error))
    }

    /// Runs a script, and waits for the replicas if the builder asked for that.
    pub(super) async fn run_acknowledged<T: FromRedisValue>(
        &self,
        script: &Source,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Argument<'_>],
        before_second: impl FnOnce(),
    ) -> Result<T, StoreError> {
        let Some(acknowledged) = &self.acknowledged else {
            let run = self.connection.run_and_tell(script, keys, arguments, before_second).await;
            return run.map_err(|error| self.error(error));
        };
        let run = acknowledged.run(script, keys, arguments, before_second).await;
        let (answer, replicas) = run.map_err(|error| self.error(error))?;
        if replicas < acknowledged.replicas {
            return Err(StoreError::unavailable(NotReplicated { replicas, wanted: acknowledged.replicas }));
        }
        Ok(answer)
    }

    /// Makes a call of a registry. If no answer comes, checks whether the server is alive, because it may have no free
    /// connection.
    pub(super) async fn checking_connection_limit<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Some(current) = Call::current() else { return call.await };
        let mut calling = pin!(call);
        match timeout(current.limit() / 2, &mut calling).await {
            Ok(Err(error)) if error.is_unreachable() && self.connection.is_at_connection_limit().await => {
                Err(error.into_busy())
            }
            Ok(answer) => answer,
            Err(_) => {
                let asking = async {
                    if self.connection.is_at_connection_limit().await {
                        current.server_lives();
                    }
                };
                tokio::select! {
                    answer = &mut calling => answer,
                    () = asking => calling.await,
                }
            }
        }
    }

    pub(super) async fn look(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let (value, left, now): (Option<Vec<u8>>, i64, i64) =
            self.run(&self.scripts.look, &[self.name(key)], &[]).await?;
        value.map(|value| value::entry(key.clone(), &value, left, now)).transpose()
    }

    pub(super) fn error(&self, error: RedisError) -> StoreError {
        // Before version 7, the error of a command in a script is part of a longer text.
        let text = error.to_string();
        let is = |code: &str| error.code() == Some(code) || text.split([' ', '-']).any(|word| word == code);
        // A server that cannot save its data to the disk accepts no writes.
        if is("OOM") || is("MISCONF") {
            StoreError::Full
        } else if ["invalid bulk length", "proto-max-bulk-len"].iter().any(|what| text.contains(what)) {
            StoreError::record_rejected(error)
        } else if is_about_connections(&text) || is("BUSY") {
            StoreError::busy(error)
        } else if error.is_timeout() {
            StoreError::unavailable(Waited(error.into()))
        } else if is("WRONGTYPE") {
            StoreError::damaged("the key holds no string: another program has written it")
        } else if error.is_connection_refusal() && self.connection.sends_once() {
            StoreError::not_sent(error)
        } else {
            StoreError::unavailable(error)
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("only {replicas} of the wanted {wanted} replicas have acknowledged the write in time")]
pub(super) struct NotReplicated {
    replicas: usize,
    wanted: usize,
}
