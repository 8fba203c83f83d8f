//! The rejection of records that are longer than the server allows. The store checks the length before it sends a
//! record, and the reaction of the server afterwards.

use redis::RedisError;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::Token;
use crate::store::error::StoreError;
use crate::store::redis::connection::Argument;
use crate::store::redis::inner::Inner;
use crate::store::redis::scripts::Source;
use crate::store::redis::value;

/// The smallest `proto-max-bulk-len` that the server allows.
const SMALLEST_LIMIT: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("the record has {length} bytes as text, and Redis takes {longest} (proto-max-bulk-len)")]
struct TooLong {
    length: usize,
    longest: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("Redis closes the connection when it gets the record, as it does over a value above proto-max-bulk-len")]
struct HangsUp;

/// Returns the value of a completed key if the server accepts its length.
pub(super) fn value_of(inner: &Inner, token: Token, record: &Record) -> Result<String, StoreError> {
    let value = value::completed(token, record)?;
    if value.len() > inner.longest_value {
        return Err(StoreError::record_rejected(TooLong { length: value.len(), longest: inner.longest_value }));
    }
    Ok(value)
}

/// Runs a script that writes this value. Reports if the server closes the connection because of the value. The server
/// sends a reason, but the client may still be writing when the connection ends, and never reads the reason.
///
/// If the server answers the next call, it is alive, and accepts a record that failed only because of a restart. If it
/// closes the connection again, the value is the cause.
pub(super) async fn write(
    inner: &Inner,
    script: &Source,
    keys: &[impl AsRef<[u8]>],
    key: &RecordKey,
    value: &str,
    arguments: &[Argument<'_>],
) -> Result<u32, StoreError> {
    for _ in 0..2 {
        match inner.run_acknowledged(script, keys, arguments, || ()).await {
            Err(error) if is_closed_over(value, &error) && inner.look(key).await.is_ok() => {}
            answer => return answer,
        }
    }
    Err(StoreError::record_rejected(HangsUp))
}

fn is_closed_over(value: &str, error: &StoreError) -> bool {
    let StoreError::Unavailable(error) = error else { return false };
    let is_closed = error.downcast_ref::<RedisError>().is_some_and(RedisError::is_connection_dropped);
    is_closed && value.len() >= SMALLEST_LIMIT
}
