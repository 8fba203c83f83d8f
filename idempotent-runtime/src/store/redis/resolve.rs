//! Ends a claim by an operator's decision. One script checks the token and the lease and ends the claim.

use std::sync::Arc;

use crate::key::RecordKey;
use crate::store::claim::Token;
use crate::store::columns::token_text;
use crate::store::error::StoreError;
use crate::store::redis::connection::Argument;
use crate::store::redis::index;
use crate::store::redis::inner::Inner;
use crate::store::redis::record_limit;
use crate::store::resolution::{Resolution, Resolved};

pub(super) async fn resolve(
    inner: &Arc<Inner>,
    key: &RecordKey,
    token: Token,
    resolution: &Resolution,
) -> Result<Resolved, StoreError> {
    let (keys, token, script) = (inner.names_for_one_call(key), token_text(token), &inner.scripts.resolve);
    let (channel, index) = (Argument::Text(&inner.channel), Argument::Text(&inner.index));
    let claims = Argument::Text(inner.claims_of(&keys[0]));
    let message = Inner::message_of(&keys[0]);
    let message = Argument::Text(&message);
    let (token, nothing) = (Argument::Text(&token), Argument::Text(""));
    let answer: u32 = match resolution {
        Resolution::Executed { token: own, record, ttl } => {
            let (value, own) = (record_limit::value_of(inner, *own, record)?, token_text(*own));
            let own = Argument::Text(&own);
            // A repeated call finds its own record.
            let kept = Argument::Millis(0);
            let arguments =
                [token, Argument::Text(&value), Argument::span(*ttl), channel, index, own, claims, message, kept];
            record_limit::write(inner, script, &keys, key, &value, &arguments).await?
        }
        Resolution::NotExecuted => {
            let kept = inner.answer_kept_for();
            let arguments = [token, nothing, nothing, channel, index, nothing, claims, message, kept];
            let answer = inner.connection.run_once(script, &keys, &arguments).await;
            answer.map_err(|error| inner.error(error))?
        }
    };
    Ok(match index::ended(inner, key, answer).await {
        1 | 2 => Resolved::Yes,
        3 => Resolved::StillRunning,
        _ => Resolved::ChangedHands,
    })
}
