//! A Sentinel for one test, which watches one master.

use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::eventually;
use crate::redis::{RedisServer, SUPERVISOR, free_port, server};

/// A running Sentinel.
pub struct Sentinel {
    port: u16,
    /// Stops the Sentinel and removes its folder when its input closes.
    _supervisor: Child,
}

impl Sentinel {
    /// Starts a Sentinel that watches the master at this address under the name `shop`, with these lines in its
    /// configuration. Its own vote is enough for a failover. It considers a master down only after a minute without an
    /// answer, so that a busy machine causes no failover.
    ///
    /// # Panics
    ///
    /// When Redis is not installed.
    pub fn watch(master: &str, lines: &[&str]) -> Self {
        Self::of_quorum(1, master, lines)
    }

    /// The same, for a Sentinel that needs the votes of `quorum` Sentinels.
    ///
    /// # Panics
    ///
    /// When Redis is not installed.
    pub fn of_quorum(quorum: u32, master: &str, lines: &[&str]) -> Self {
        let folder = TempDir::with_prefix("sentinel").expect("a temporary folder").keep();
        let (port, file) = (free_port(), folder.join("sentinel.conf"));
        let folder_name = folder.display();
        let master = master.replace(':', " ");
        let lines = lines.join("\n");
        let content = format!(
            "port {port}\nbind 127.0.0.1\ndir {folder_name}\nsentinel monitor shop {master} {quorum}\n\
             sentinel down-after-milliseconds shop 60000\nsentinel failover-timeout shop 2000\n{lines}\n"
        );
        fs::write(&file, content).expect("the file is written");
        let mut supervisor = Command::new("sh");
        supervisor.args(["-c", SUPERVISOR, "supervisor"]).arg(&folder).arg(server()).arg(&file).arg("--sentinel");
        let supervisor = supervisor.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("sh starts");
        Self { port, _supervisor: supervisor }
    }

    /// Waits until it knows a replica, which it can promote.
    pub async fn until_it_knows_a_replica(&self) {
        let replicas = async || self.ask::<Vec<redis::Value>>("REPLICAS").await;
        eventually(replicas, |replicas| replicas.as_ref().is_some_and(|replicas| !replicas.is_empty())).await;
    }

    /// Waits until it knows `others` other Sentinels.
    pub async fn until_it_knows_others(&self, others: usize) {
        let named = async || self.ask::<HashMap<String, String>>("MASTER").await;
        let known = |named: &HashMap<String, String>| named["num-other-sentinels"] == others.to_string();
        eventually(named, |named| named.as_ref().is_some_and(known)).await;
    }

    /// From now on, considers a master down that does not answer for half a second.
    pub async fn lose_patience(&self) {
        let set = async || self.ask_with::<String>("SET", &["down-after-milliseconds", "500"]).await;
        eventually(set, |answer| answer.as_deref() == Some("OK")).await;
    }

    /// Makes it promote a replica, whatever the state of the master.
    pub async fn fail_over(&self) {
        eventually(async || self.ask::<String>("FAILOVER").await, |answer| answer.as_deref() == Some("OK")).await;
    }

    /// Waits until a store has subscribed to its messages and has received all of them so far.
    ///
    /// # Panics
    ///
    /// When the Sentinel does not answer.
    pub async fn until_it_is_heard(&self) {
        let client = redis::Client::open(format!("redis://{}/", self.address())).expect("the URL is well-formed");
        let clients = async || {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            redis::cmd("CLIENT").arg("LIST").query_async::<String>(&mut connection).await.ok()
        };
        let is_heard = |list: &String| list.lines().any(|line| line.contains(" sub=2 ") && line.contains(" obl=0 "));
        eventually(clients, |list| list.as_ref().is_some_and(is_heard)).await;
    }

    /// Waits until it reports this server as the master.
    pub async fn until_it_names(&self, master: &RedisServer) {
        let named = async || self.ask::<HashMap<String, String>>("MASTER").await;
        let is_named =
            |named: &HashMap<String, String>| format!("{}:{}", named["ip"], named["port"]) == master.address();
        eventually(named, |named| named.as_ref().is_some_and(is_named)).await;
    }

    async fn ask<T: redis::FromRedisValue>(&self, question: &str) -> Option<T> {
        self.ask_with(question, &[]).await
    }

    async fn ask_with<T: redis::FromRedisValue>(&self, question: &str, rest: &[&str]) -> Option<T> {
        let client = redis::Client::open(format!("redis://{}/", self.address())).expect("the URL is well-formed");
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("SENTINEL").arg(question).arg("shop").arg(rest).query_async(&mut connection).await.ok()
    }

    /// The address, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Starts a replica of this master, and waits until the replica has received all data.
pub async fn replica_of(master: &RedisServer, settings: &[&str]) -> RedisServer {
    let follows = format!("--replicaof {}", master.address().replace(':', " "));
    let replica = RedisServer::start(&[settings, &[&follows]].concat()).await;
    let info = async || replica.command::<String>("INFO replication").await;
    eventually(info, |info| info.contains("master_link_status:up")).await;
    replica
}
