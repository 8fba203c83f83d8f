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

/// Resolves the host of each server, also of those that join later, before the client connects.
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

/// The hosts of all servers that this one names, masters and replicas. One without a host is at the address that was asked.
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

/// Whether the server is at this host. One that does not know its own address names another: the client goes to the address at
/// which it has asked.
fn is_address(host: &str) -> bool {
    !matches!(host, "" | "0.0.0.0" | "::")
}

/// The first server of each range of slots.
pub(super) async fn masters(cluster: &ClusterConnection) -> RedisResult<Vec<Node>> {
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut cluster.clone()).await?;
    let mut masters = Vec::new();
    for range in ranges {
        // First slot, last slot, master, replicas; a server is its host, its port, and what newer versions add.
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

/// The masters under the addresses to which the client has connected.
async fn connected(cluster: &ClusterConnection) -> RedisResult<Vec<Node>> {
    let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    // Without a policy for the answers, each is told with its server's address. The store has the right to `TIME` anyway.
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
