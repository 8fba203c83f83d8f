//! The servers of a Cluster that have keys of their own.

use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, RedisResult, Value};

use crate::store::redis::node::Node;

/// The first server of each range of slots.
pub(super) async fn masters(cluster: &ClusterConnection) -> RedisResult<Vec<Node>> {
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut cluster.clone()).await?;
    let mut masters = Vec::new();
    for range in ranges {
        // First slot, last slot, master, replicas; a server is its host, its port, and what newer versions add.
        if let Some(Value::Array(mut master)) = range.into_iter().nth(2) {
            master.truncate(2);
            masters.push(Some(redis::from_redis_value(Value::Array(master))?));
        }
    }
    masters.sort();
    masters.dedup();
    Ok(masters)
}

pub(super) async fn query_node(
    cluster: &ClusterConnection,
    (host, port): (String, u16),
    command: Cmd,
) -> RedisResult<Value> {
    let node = SingleNodeRoutingInfo::ByAddress { host, port };
    cluster.clone().route_command(command, RoutingInfo::SingleNode(node)).await
}
