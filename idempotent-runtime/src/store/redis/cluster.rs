//! The servers of a Cluster that have keys of their own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::io::AsyncDNSResolver;
use redis::{Cmd, ErrorKind, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::Notify;

use crate::store::redis::address::Address;
use crate::store::redis::node::Node;

/// Resolves the host of each server before the client connects to it, also of servers that join later.
pub(super) struct Resolver {
    address: Address,
    joined: Arc<Notify>,
}

impl Resolver {
    pub(super) fn new(address: Address, joined: Arc<Notify>) -> Self {
        Self { address, joined }
    }
}

impl AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            self.address.check_host(host).map_err(|error| {
                let told = error.to_string();
                tracing::error!(error = told, "a server of the Cluster is not used: keys that it has are rejected");
                RedisError::from((ErrorKind::InvalidClientConfig, "the server would be used in clear", told))
            })?;
            let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
            self.joined.notify_one();
            Ok(Box::new(found.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

/// Returns the hosts of all masters and replicas that this server names. A server without a host is at the address that
/// was queried.
pub(super) async fn hosts(server: &mut MultiplexedConnection) -> RedisResult<Vec<String>> {
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(server).await?;
    let servers = ranges.into_iter().flat_map(|range| range.into_iter().skip(2));
    let hosts = servers.filter_map(|server| match server {
        Value::Array(server) => server.into_iter().next(),
        _ => None,
    });
    let hosts: Result<Vec<Option<String>>, _> = hosts.map(redis::from_redis_value).collect();
    Ok(hosts?.into_iter().flatten().filter(|host| is_address(host)).collect())
}

/// Returns whether the host is a server's address. A server that does not know its own address names a placeholder. The
/// client then uses the address that it has queried.
fn is_address(host: &str) -> bool {
    !matches!(host, "" | "0.0.0.0" | "::")
}

/// Returns the master of each range of slots.
pub(super) async fn masters(cluster: &ClusterConnection) -> RedisResult<Vec<Node>> {
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut cluster.clone()).await?;
    let mut masters = Vec::new();
    for range in ranges {
        // A range has its first slot, last slot, master and replicas. A server has its host, its port, and fields of
        // newer versions.
        if let Some(Value::Array(mut master)) = range.into_iter().nth(2) {
            master.truncate(2);
            let (host, port): (Option<String>, u16) = redis::from_redis_value(Value::Array(master))?;
            let Some(host) = host.filter(|host| is_address(host)) else { return connected(cluster).await };
            masters.push(Some((host, port)));
        }
    }
    masters.sort();
    masters.dedup();
    Ok(masters)
}

/// Returns the masters by the addresses to which the client has connected.
async fn connected(cluster: &ClusterConnection) -> RedisResult<Vec<Node>> {
    let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    // Without a policy for the answers, each answer comes with the address of its server. The store has the right to
    // `TIME` anyway.
    let answers = cluster.clone().route_command(redis::cmd("TIME"), masters).await?;
    let answers: HashMap<String, Value> = redis::from_redis_value(answers)?;
    let address = |address: String| {
        let (host, port) = address.rsplit_once(':')?;
        Some((host.to_owned(), port.parse().ok()?))
    };
    let mut nodes: Vec<Node> = answers.into_keys().map(address).collect();
    nodes.sort();
    Ok(nodes)
}

pub(super) async fn query_node(
    cluster: &ClusterConnection,
    (host, port): (String, u16),
    command: Cmd,
) -> RedisResult<Value> {
    let node = SingleNodeRoutingInfo::ByAddress { host, port };
    cluster.clone().route_command(command, RoutingInfo::SingleNode(node)).await
}
