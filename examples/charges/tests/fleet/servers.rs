//! The server processes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use idempotent_tests::lock;
use reqwest::Client;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::MissedTickBehavior;

use crate::clients::Seed;
use crate::support::{LOG, Process};

pub(crate) const SERVERS: usize = 3;

/// Servers that share a store, a ledger and a card network.
pub(crate) struct Fleet {
    options: Vec<String>,
    servers: Mutex<Vec<Process>>,
    pub(crate) client: Client,
    // Dropped after the servers, which write into it.
    data: Arc<TempDir>,
}

impl Fleet {
    /// Starts all servers at once, with this store or the default one.
    pub(crate) async fn start(store: Option<String>, network_latency: &str) -> Self {
        let mut options = vec!["--network-latency".to_owned(), network_latency.to_owned()];
        if let Some(store) = store {
            options.extend(["--store".to_owned(), store]);
        }
        let client = Client::builder().retry(reqwest::retry::never()).timeout(Duration::from_secs(30)).build();
        let fleet = Self {
            options,
            servers: Mutex::default(),
            client: client.expect("a client"),
            data: Arc::new(tempfile::tempdir().expect("a temporary folder")),
        };
        let (first, second, third) = tokio::join!(fleet.new_server(), fleet.new_server(), fleet.new_server());
        fleet.with_servers(|servers| servers.extend([first, second, third]));
        fleet
    }

    async fn new_server(&self) -> Process {
        let (data, options) = (Arc::clone(&self.data), self.options.clone());
        let starting = tokio::task::spawn_blocking(move || {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            Process::start(data.path(), &options)
        });
        starting.await.expect("the server starts")
    }

    /// The URL of `path` on one of the servers, which may just have died.
    pub(crate) fn url(&self, server: usize, path: &str) -> String {
        self.with_servers(|servers| format!("http://{}{path}", servers[server].address))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = self.client.get(self.url(0, path)).send().await.expect("an answer");
        response.json().await.expect("what was asked for")
    }

    /// Makes `count` charges that can be refunded, and returns their ids.
    pub(crate) async fn charges(&self, count: usize) -> Vec<Value> {
        let order = json!({ "amount": 100_000, "currency": "EUR", "card": "4242" });
        let charges = (0..count).map(async |number| {
            let request = self.client.post(self.url(number % SERVERS, "/charges")).bearer_auth("alice").json(&order);
            let response = request.header("idempotency-key", format!("to-refund-{number}")).send().await;
            let charge: Value = response.expect("an answer").json().await.expect("a charge");
            charge["id"].clone()
        });
        join_all(charges).await
    }

    /// Until `work` is done, kills a server with SIGKILL every second and starts another one in its place.
    pub(crate) async fn killing_one_every_second<T>(&self, seed: Seed, work: impl Future<Output = T>) -> T {
        let mut random = seed.random(0);
        let killing = async {
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let victim = random.usize(..SERVERS);
                self.with_servers(|servers| servers[victim].child.kill().expect("it runs"));
                let successor = self.new_server().await;
                let dead = self.with_servers(|servers| std::mem::replace(&mut servers[victim], successor));
                drop(dead);
            }
        };
        let done = tokio::select! {
            done = work => done,
            () = killing => unreachable!("it kills forever"),
        };
        // The server that was killed last may not have been replaced yet.
        for server in 0..SERVERS {
            if self.with_servers(|servers| servers[server].child.try_wait().expect("it is a child")).is_some() {
                let successor = self.new_server().await;
                self.with_servers(|servers| servers[server] = successor);
            }
        }
        done
    }

    fn with_servers<T>(&self, ask: impl FnOnce(&mut Vec<Process>) -> T) -> T {
        ask(&mut lock(&self.servers))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.data.path().join(LOG)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("the servers' last warnings:\n{}", last.join("\n"));
        }
    }
}
