//! A completion as one of many in one script.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, RedisResult};

use crate::store::redis::batched::Batched;
use crate::store::redis::connection::{Argument, Connection};
use crate::store::redis::scripts::Source;

pub(super) struct BatchedCompletion {
    pub(super) name: Vec<u8>,
    pub(super) value: String,
    pub(super) ttl: Duration,
    pub(super) message: String,
}

impl BatchedCompletion {
    pub(super) fn arguments(&self) -> [Argument<'_>; 2] {
        [Argument::Text(&self.value), Argument::span(self.ttl)]
    }

    pub(super) fn bytes(&self) -> usize {
        self.name.len() + self.value.len()
    }
}

/// Sends completions in one script.
pub(super) struct InScript {
    pub(super) connection: Connection,
    pub(super) script: Source,
    pub(super) channel: String,
    /// The set of claims that never expire.
    pub(super) index: String,
    /// The set of claims that expire.
    pub(super) claims: String,
}

impl Batched for InScript {
    type Operation = BatchedCompletion;
    type Answer = u32;

    fn bytes(&self, completion: &BatchedCompletion) -> usize {
        completion.bytes()
    }

    async fn send(&self, batch: &[Arc<BatchedCompletion>]) -> RedisResult<Vec<Option<u32>>> {
        let names: Vec<&[u8]> = batch.iter().map(|completion| &completion.name[..]).collect();
        let messages: String = batch.iter().map(|completion| &*completion.message).collect();
        let mut arguments = Vec::with_capacity(4 + 2 * batch.len());
        arguments.extend([&self.channel, &self.index, &self.claims, &messages].map(|text| Argument::Text(text)));
        arguments.extend(batch.iter().flat_map(|completion| completion.arguments()));
        if let [_] = batch {
            return Ok(vec![Some(self.connection.run(&self.script, &names, &arguments).await?)]);
        }
        let answers: Vec<i64> = self.connection.run(&self.script, &names, &arguments).await?;
        // A claim is seldom lost. Its own script confirms that, because a proxy may have sent this one to the server of the first key.
        let ended = |answer: i64| u32::try_from(answer).ok().filter(|&answer| answer > 0);
        Ok(answers.into_iter().map(ended).collect())
    }

    /// A completion that is sent again recognises its own record.
    fn is_rejected(error: &RedisError) -> bool {
        error.code().is_some()
    }
}
