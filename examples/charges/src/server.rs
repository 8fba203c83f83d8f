//! The server: its stores, its routes, and how it stops.

use std::net::SocketAddr;

use anyhow::Context;
use charges::api::{App, router};
use charges::network::CardNetwork;
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::ServerOptions;
use crate::operators;
use crate::store::{Opened, StoreOption};

pub(crate) async fn run(options: ServerOptions) -> anyhow::Result<()> {
    let ServerOptions { addr, store, data, network_latency, operator, grace } = options;
    let folder = data.display();
    tokio::fs::create_dir_all(&data).await.with_context(|| format!("the folder {folder} cannot be created"))?;
    let store = store.unwrap_or_else(|| StoreOption::Sqlite(data.join("ledger.db")));
    let Opened { registry, ledger, transactions } = store.open(&data).await?;
    let registry = registry.install()?;
    let network = CardNetwork::open(&data.join("network.db"), network_latency).await?;

    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}; choose another address with --addr"))?;
    let address = listener.local_addr()?;
    let mut app = router(App { ledger, network }, transactions);
    if let Some(account) = operator {
        app = app.merge(operators::router(&registry, account));
        tracing::info!("operators look into the records at http://{address}{}", operators::PATH);
    }
    let stop = stop_signal()?.shared();

    greet(address);
    for policy in idempotent_runtime::policies() {
        let ttl = humantime::format_duration(policy.ttl());
        tracing::info!("{} guards {} and keeps its responses for {ttl}", policy.scope(), policy.handler());
    }
    // A client that never sends the end of its request would hold the shutdown up for ever.
    let out_of_patience = stop.clone().then(|()| tokio::time::sleep(grace));
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(stop).into_future() => served?,
        () = out_of_patience => tracing::warn!("leaving connections that are still open"),
    }

    tracing::info!("no new connections; waiting for handlers that are still running");
    match registry.drain(grace).await {
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
