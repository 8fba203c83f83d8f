//! The server: its stores, its routes, and how it stops.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use idempotent_runtime::store::SqliteStore;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::ServerOptions;
use crate::api::{App, router};
use crate::ledger::Ledger;
use crate::network::CardNetwork;

/// How long a shutdown waits for handlers whose client is gone.
const DRAIN: Duration = Duration::from_secs(30);

pub(crate) async fn run(options: ServerOptions) -> anyhow::Result<()> {
    let ServerOptions { addr, data, network_latency } = options;
    let folder = data.display();
    tokio::fs::create_dir_all(&data).await.with_context(|| format!("the folder {folder} cannot be created"))?;
    let ledger = Ledger::open(&data.join("ledger.db")).await.context("the ledger cannot be opened")?;
    let registry = idempotent_runtime::install(SqliteStore::open(data.join("idempotency.db")).await?)?;

    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}; choose another address with --addr"))?;
    let address = listener.local_addr()?;
    let app = App { network: CardNetwork::new(network_latency, ledger.pool()), ledger };
    let stop = stop_signal()?;

    greet(address);
    for policy in idempotent_runtime::policies() {
        tracing::info!("{} guards {} and keeps its responses for {:?}", policy.scope(), policy.handler(), policy.ttl());
    }
    axum::serve(listener, router(app)).with_graceful_shutdown(stop).await?;

    tracing::info!("no new connections; waiting for handlers that are still running");
    match registry.drain(DRAIN).await {
        0 => tracing::info!("all of them are done"),
        left => tracing::warn!(left, "stopping anyway; their retries take over when their leases have run out"),
    }
    Ok(())
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn greet(address: SocketAddr) {
    println!(
        "\
listening on http://{address}

Try, twice each:
  curl -i http://{address}/charges -H 'Authorization: Bearer alice' -H 'Idempotency-Key: first-charge' \\
       --json '{{\"amount\": 1999, \"currency\": \"EUR\", \"card\": \"4242\"}}'
  curl -i http://{address}/refunds -H 'Authorization: Bearer alice' -H 'Idempotency-Key: first-refund' \\
       --json '{{\"charge\": 1, \"amount\": 500}}'
  curl -i http://{address}/network-events --json '{{\"id\": \"evt_1\", \"charge\": 1, \"kind\": \"dispute\"}}'
  curl -s http://{address}/charges/1 -H 'Authorization: Bearer alice'
  curl -s http://{address}/ledger
"
    );
}
