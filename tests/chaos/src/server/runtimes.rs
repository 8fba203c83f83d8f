//! Several runtimes in one process: one thread accepts connections and hands each to a current-thread runtime in turn. A
//! runtime can be ended in the middle of its work; another one takes its place.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::{io, thread};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use idempotent_runtime::store::StoreAdmin;
use idempotent_tests::lock;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, mpsc};

use super::{Site, behind_a_balancer};
use crate::now;

/// Ends the runtime that gets the request.
pub const END_RUNTIME: &str = "/end-runtime";

/// The runtimes of this process.
#[derive(Clone, Default)]
pub(super) struct Runtimes(Arc<Mutex<Option<Handle>>>);

impl Runtimes {
    /// The runtime that renews all leases if the guard is disabled.
    pub(super) fn first(&self) -> Option<Handle> {
        lock(&self.0).clone()
    }

    pub(super) async fn serve<S: StoreAdmin>(
        &self,
        listener: TcpListener,
        count: usize,
        site: Site<S>,
    ) -> anyhow::Result<()> {
        let (site, main, address) = (Arc::new(site), Handle::current(), listener.local_addr()?);
        let mut runtimes = Vec::new();
        for number in 0..count {
            let (handing, connections) = mpsc::unbounded_channel();
            let connections = Connections { receiver: Arc::new(tokio::sync::Mutex::new(connections)), address };
            let (runtimes_of_process, site, main) = (self.clone(), Arc::clone(&site), main.clone());
            thread::Builder::new()
                .name(format!("runtime-{number}"))
                .spawn(move || runtimes_of_process.run(number, &site, &main, &connections))?;
            runtimes.push(handing);
        }
        println!("{address}");
        for runtime in runtimes.iter().cycle() {
            let (connection, _) = listener.accept().await?;
            runtime.send(connection.into_std()?)?;
        }
        Ok(())
    }

    /// Runs one runtime after another on this thread.
    fn run<S: StoreAdmin>(&self, number: usize, site: &Site<S>, main: &Handle, connections: &Connections) {
        for incarnation in 0.. {
            let name = format!("{}/r{number}.{incarnation}", site.name);
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            if number == 0 {
                *lock(&self.0) = Some(runtime.handle().clone());
            }
            serve_until_ended(&runtime, &name, site, main, connections.clone());
            let begun_at = now();
            // This drops everything that runs on the runtime.
            drop(runtime);
            main.block_on(site.ledger.runtime_ended(&name, begun_at));
        }
    }
}

fn serve_until_ended<S: StoreAdmin>(
    runtime: &Runtime,
    name: &str,
    site: &Site<S>,
    main: &Handle,
    connections: Connections,
) {
    let end = Arc::new(Notify::new());
    let ending = Arc::clone(&end);
    let router = site.router(name.to_owned(), Some(main.clone()));
    let router = router.route(END_RUNTIME, post(async move || ending.notify_one()));
    runtime.block_on(async {
        tokio::select! {
            served = axum::serve(connections, behind_a_balancer(router)).into_future() => served.expect("the runtime serves"),
            () = end.notified() => {}
        }
    });
}

/// The connections that the accepting thread hands over.
#[derive(Clone)]
struct Connections {
    receiver: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<std::net::TcpStream>>>,
    address: SocketAddr,
}

impl Listener for Connections {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let Some(connection) = self.receiver.lock().await.recv().await else { std::future::pending().await };
            if let Ok(connection) = TcpStream::from_std(connection) {
                return (connection, self.address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Runs the rest of the request on another runtime than the one that serves the connection.
pub(super) async fn run_elsewhere(State(runtime): State<Handle>, request: Request, next: Next) -> Response {
    let running = runtime.spawn(next.run(request));
    running.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}
