//! The server: its stores, its routes, and how it stops.

use std::net::SocketAddr;

use anyhow::Context;
use charges::api::{App, router};
use charges::network::CardNetwork;
use charges::signature::NetworkSecret;
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::ServerOptions;
use crate::operators;
use crate::store::{Opened, StoreOption};

pub(crate) async fn run(options: ServerOptions) -> anyhow::Result<()> {
    let ServerOptions { addr, store, data, network_latency, operator, network_secret, grace } = options;
    anyhow::ensure!(
        !network_secret.is_public() || addr.ip().is_loopback(),
        "everyone can sign events with the public secret: set CHARGES_NETWORK_SECRET, or listen on a loopback address with --addr"
    );
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
    if network_secret.is_public() {
        tracing::warn!(
            "every program of this machine can sign events: set CHARGES_NETWORK_SECRET to a secret of your own"
        );
    }
    let secret = if network_secret.is_public() { NetworkSecret::PUBLIC } else { "$CHARGES_NETWORK_SECRET" };
    let mut app = router(App { ledger, network, network_secret }, transactions);
    if let Some(account) = operator {
        app = app.merge(operators::router(&registry, account));
        tracing::info!("operators look into the records at http://{address}{}", operators::PATH);
    }
    let stop = stop_signal()?.shared();

    greet(address, secret);
    for policy in idempotent_runtime::policies() {
        let ttl = humantime::format_duration(policy.ttl());
        tracing::info!("{} guards {} and keeps its responses for {ttl}", policy.scope(), policy.handler());
    }
    // A client that never completes its request would delay the shutdown forever.
    let out_of_patience = stop.clone().then(|()| tokio::time::sleep(grace));
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(stop).into_future() => served?,
        () = out_of_patience => tracing::warn!("leaving connections that are still open"),
    }

    tracing::info!("no new connections; waiting for handlers that are still running");
    match registry.drain(grace).await {
        0 => tracing::info!("all of them are done"),
        left => tracing::warn!(left, "stopping anyway; their retries take over when their leases have expired"),
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

/// `secret` is the shell expression for the secret of the events.
fn greet(address: SocketAddr, secret: &str) {
    println!(
        "\
listening on http://{address}

Try, twice each:
  curl -i http://{address}/charges -H 'Authorization: Bearer alice' -H 'Idempotency-Key: first-charge' \\
       --json '{{\"amount\": 1999, \"currency\": \"EUR\", \"card\": \"4242\"}}'
  curl -i http://{address}/refunds -H 'Authorization: Bearer alice' -H 'Idempotency-Key: first-refund' \\
       --json '{{\"charge\": 1, \"amount\": 500}}'
  event='{{\"id\": \"evt_1\", \"charge\": 1, \"kind\": \"dispute\"}}' time=$(date +%s)
  signature=$(printf '%s.%s' \"$time\" \"$event\" | openssl dgst -sha256 -hmac \"{secret}\" -r | cut -d ' ' -f 1)
  curl -i http://{address}/network-events -H \"Network-Signature: t=$time,v1=$signature\" --json \"$event\"
  curl -s http://{address}/charges/1 -H 'Authorization: Bearer alice'
  curl -s http://{address}/ledger
"
    );
}
