//! One hostile client beside ten honest ones: `hostile-client CONNECTIONS SECONDS`. The hostile one opens so many connections, and
//! keeps them open: a third of them with bodies that never end, a third with fresh keys for a handler that hangs, and a third that
//! disconnect from that handler and come again. Prints the honest clients' success rate and latencies, without and beside it.
//!
//! Both ends of a connection are in this process: it takes twice as many file descriptors as connections (`ulimit -n`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HONEST: usize = 10;

#[idempotent(scope = "hostile-client-charges")]
async fn charge(_body: String) -> StatusCode {
    StatusCode::CREATED
}

#[idempotent(scope = "hostile-client-hangs")]
async fn hang(_body: String) -> StatusCode {
    std::future::pending().await
}

/// The connection number `number` of the hostile client.
async fn attack(address: SocketAddr, number: usize) {
    loop {
        let Ok(mut connection) = TcpStream::connect(address).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (path, length, part) = match number % 3 {
            0 => ("/charges", 2_000_000, 64 * 1024),
            _ => ("/hangs", 0, 0),
        };
        let spelling: String = "bearer"
            .chars()
            .enumerate()
            .map(|(at, letter)| if number >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter })
            .collect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: {spelling} hostile\r\nidempotency-key: {number}\r\n\
             content-length: {length}\r\n\r\n"
        );
        let _ = connection.write_all(head.as_bytes()).await;
        let _ = connection.write_all(&vec![b'x'; part]).await;
        let mut answer = [0; 1024];
        if number % 3 == 2 {
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.read(&mut answer)).await;
        } else {
            let _ = connection.read(&mut answer).await;
            // Rejected: it stays connected, and comes again.
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// How long the requests of the honest clients took, and how many of them failed.
async fn be_honest(server: &Server, phase: &str, until: Instant) -> (Vec<Duration>, usize) {
    let clients = (0..HONEST).map(async |client| {
        let (mut took, mut failed, mut number) = (Vec::new(), 0, 0);
        while Instant::now() < until {
            let begun = Instant::now();
            let request = server.post("/charges").header("authorization", format!("Bearer honest-{client}"));
            let request =
                request.header("idempotency-key", format!("{phase}-{client}-{number}")).body("x".repeat(8 * 1024));
            let response = request.timeout(Duration::from_secs(10)).send().await;
            failed += usize::from(!response.is_ok_and(|response| response.status() == StatusCode::CREATED));
            took.push(begun.elapsed());
            number += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (took, failed)
    });
    let all = join_all(clients).await;
    let failed = all.iter().map(|(_, failed)| failed).sum();
    (all.into_iter().flat_map(|(took, _)| took).collect(), failed)
}

fn report(phase: &str, (mut took, failed): (Vec<Duration>, usize)) {
    took.sort();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "{phase}: {} honest requests, {failed} failed; p50 {:?}, p99 {:?}, longest {:?}",
        took.len(),
        at(50),
        at(99),
        took.last().copied().unwrap_or_default(),
    );
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let (Some(Ok(connections)), Some(Ok(seconds))) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: hostile-client CONNECTIONS SECONDS");
        std::process::exit(2);
    };
    let last = Duration::from_secs(seconds.min(600) as u64);
    let registry = Registry::builder(MemoryStore::new()).max_in_flight_per_caller(20).build();
    let app = Router::new().route("/charges", post(charge)).route("/hangs", post(hang)).layer(registry.layer());
    let server = Server::start(app).await;
    report("alone", be_honest(&server, "alone", Instant::now() + last).await);
    let address = server.address();
    let attackers: Vec<_> = (0..connections).map(|number| tokio::spawn(attack(address, number))).collect();
    // The burst of connections is part of the attack.
    report("beside the hostile client", be_honest(&server, "beside", Instant::now() + last).await);
    println!("handlers that still run: {}", registry.drain(Duration::ZERO).await);
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
}
