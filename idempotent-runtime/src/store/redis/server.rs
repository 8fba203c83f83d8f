//! The properties of the server: its version, whether it evicts keys, and the longest value that it accepts.

use std::collections::HashMap;

use redis::{ErrorKind, RedisError, Value};

use crate::store::redis::connection::Connection;
use crate::store::redis::node::Node;
use crate::store::redis::open_error::{OLDEST, RedisOpenError};

/// Returns the error, unless the connection broke. An operator must not be told to grant a right in that case.
fn unless_unreachable(error: RedisError) -> Result<RedisError, RedisOpenError> {
    // The client of a Cluster has no connection to one of the servers.
    let is_unreachable = error.is_io_error() || error.kind() == ErrorKind::ClusterConnectionNotFound;
    if is_unreachable { Err(RedisOpenError::Unreachable(error)) } else { Ok(error) }
}

pub(super) async fn version(connection: &Connection) -> Result<(u32, u32), RedisOpenError> {
    let mut oldest_found = (u32::MAX, 0);
    for node in connection.nodes().await.map_err(RedisOpenError::Unreachable)? {
        let info = match info(connection, &node, "server").await {
            Ok(info) => info,
            Err(error) => {
                unless_unreachable(error)?;
                tracing::warn!(
                    "the version of Redis cannot be read: {}.{} is assumed, and claims cost more; INFO is forbidden, grant +info",
                    OLDEST.0,
                    OLDEST.1
                );
                return Ok(OLDEST);
            }
        };
        let version = field(&info, "redis_version").unwrap_or_default();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
        let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        if found < OLDEST {
            return Err(RedisOpenError::TooOld { found: version.to_owned() });
        }
        oldest_found = oldest_found.min(found);
    }
    Ok(oldest_found)
}

#[cfg(feature = "operate")]
pub(super) async fn is_in_cluster(connection: &Connection) -> Result<bool, RedisOpenError> {
    let info = info(connection, &None, "cluster").await.map_err(RedisOpenError::Unreachable)?;
    Ok(field(&info, "cluster_enabled") == Some("1"))
}

/// Rejects a server that evicts keys, or whose policy cannot be read.
pub(super) async fn reject_eviction(connection: &Connection) -> Result<(), RedisOpenError> {
    match policy_that_evicts(connection).await? {
        Some(policy) => Err(RedisOpenError::Evicts { policy }),
        None => Ok(()),
    }
}

/// Returns the policy of a server that evicts keys, if there is one.
pub(super) async fn policy_that_evicts(connection: &Connection) -> Result<Option<String>, RedisOpenError> {
    for node in connection.nodes().await.map_err(RedisOpenError::Unreachable)? {
        let policy = match setting(connection, &node, "maxmemory-policy").await {
            Ok(Some(policy)) => Some(policy),
            Ok(None) => None,
            Err(error) => {
                unless_unreachable(error)?;
                None
            }
        };
        let policy = match policy {
            Some(policy) => policy,
            None => match info(connection, &node, "memory").await {
                Ok(info) => field(&info, "maxmemory_policy").unwrap_or("not told").to_owned(),
                Err(error) => return Err(RedisOpenError::UnknownEviction(unless_unreachable(error)?)),
            },
        };
        if policy != "noeviction" {
            return Ok(Some(policy));
        }
    }
    Ok(None)
}

/// Returns the longest value that every server accepts. A limit that cannot be read counts as the default.
pub(super) async fn longest_value(connection: &Connection) -> Result<usize, RedisOpenError> {
    const DEFAULT: usize = 512 * 1024 * 1024;

    let mut longest = DEFAULT;
    for node in connection.nodes().await.map_err(RedisOpenError::Unreachable)? {
        match setting(connection, &node, "proto-max-bulk-len").await {
            Ok(length) => longest = longest.min(length.and_then(|length| length.parse().ok()).unwrap_or(DEFAULT)),
            Err(error) => drop(unless_unreachable(error)?),
        }
    }
    Ok(longest)
}

/// Reads a setting of the server. RESP2 answers with a list, RESP3 with a map.
async fn setting(connection: &Connection, node: &Node, name: &str) -> Result<Option<String>, RedisError> {
    let get = redis::cmd("CONFIG").arg("GET").arg(name).to_owned();
    let mut settings: HashMap<String, String> = connection.query_node(node, get).await?;
    Ok(settings.remove(name))
}

async fn info(connection: &Connection, node: &Node, section: &str) -> Result<String, RedisError> {
    let info: Value = connection.query_node(node, redis::cmd("INFO").arg(section).to_owned()).await?;
    Ok(redis::from_redis_value(info)?)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
