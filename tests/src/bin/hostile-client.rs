//! Measures honest clients beside one hostile client: `hostile-client CONNECTIONS SECONDS`. Runs once against a bare
//! axum server and once against the same server with the guard. Prints a table of the success rate and the latencies of
//! ten honest clients, first without the hostile client and then beside it.
//!
//! The hostile client opens CONNECTIONS connections and keeps them open. A third of them send bodies that never end, a
//! third send fresh keys to a handler that hangs, and a third disconnect from that handler and connect again.
//!
//! Each server and the hostile client are separate processes, as in production. A process needs one file descriptor for
//! each connection (`ulimit -n`). The memory that the hostile client needs is not part of the server's.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::Server;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const HONEST: usize = 10;
const TIMEOUT: Duration = Duration::from_secs(10);

#[idempotent(scope = "hostile-client-charges")]
async fn charge(body: String) -> StatusCode {
    bare_charge(body).await
}

#[idempotent(scope = "hostile-client-hangs")]
async fn hang(body: String) -> StatusCode {
    bare_hang(body).await
}

async fn bare_charge(_body: String) -> StatusCode {
    StatusCode::CREATED
}

async fn bare_hang(_body: String) -> StatusCode {
    std::future::pending().await
}

/// Serves until its standard input ends.
async fn serve(is_guarded: bool) {
    let app = if is_guarded {
        let registry = Registry::builder(MemoryStore::new()).max_in_flight_per_caller(20).build();
        Router::new().route("/charges", post(charge)).route("/hangs", post(hang)).layer(registry.layer())
    } else {
        Router::new().route("/charges", post(bare_charge)).route("/hangs", post(bare_hang))
    };
    let server = Server::start(app).await;
    println!("{}", server.address());
    let _ = tokio::io::stdin().read(&mut [0]).await;
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
            // The request was rejected: stay connected for a while, then connect again.
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// What the honest clients observed.
struct Seen {
    took: Vec<Duration>,
    failed: usize,
}

async fn be_honest(address: SocketAddr, phase: &str, until: Instant) -> Seen {
    let clients = (0..HONEST).map(async |client| {
        let http = reqwest::Client::new();
        let mut seen = Seen { took: Vec::new(), failed: 0 };
        while Instant::now() < until {
            let begun = Instant::now();
            let request = http
                .post(format!("http://{address}/charges"))
                .header("authorization", format!("Bearer honest-{client}"))
                .header("idempotency-key", format!("{phase}-{client}-{}", seen.took.len()))
                .body("x".repeat(8 * 1024));
            let response = request.timeout(TIMEOUT).send().await;
            seen.failed += usize::from(!response.is_ok_and(|response| response.status() == StatusCode::CREATED));
            seen.took.push(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        seen
    });
    let all = join_all(clients).await;
    let failed = all.iter().map(|seen| seen.failed).sum();
    Seen { took: all.into_iter().flat_map(|seen| seen.took).collect(), failed }
}

fn report(server: &str, phase: &str, mut seen: Seen) {
    seen.took.sort();
    let sent = seen.took.len();
    let at = |percent: usize| seen.took.get(sent * percent / 100).copied().unwrap_or_default().as_secs_f64() * 1e3;
    let longest = seen.took.last().copied().unwrap_or_default().as_secs_f64() * 1e3;
    let failed = seen.failed;
    let (half, most) = (at(50), at(99));
    println!("| {server} | {phase} | {sent} | {failed} | {half:.1} ms | {most:.1} ms | {longest:.1} ms |");
}

fn start(role: &str, arguments: &[String]) -> Child {
    let program = std::env::current_exe().expect("the program has a path");
    let child = Command::new(program)
        .arg(role)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    child.expect("it starts")
}

async fn measure(server: &str, connections: usize, phase: Duration) {
    let mut process = start(server, &[]);
    let mut line = String::new();
    let output = process.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut line).await.expect("it prints its address");
    let address: SocketAddr = line.trim().parse().expect("an address");
    report(server, "alone", be_honest(address, "alone", Instant::now() + phase).await);
    let hostile = start("attack", &[address.to_string(), connections.to_string()]);
    // The burst of new connections is part of the attack, so the measurement begins at once.
    report(server, "beside the hostile client", be_honest(address, "beside", Instant::now() + phase).await);
    for mut child in [hostile, process] {
        child.kill().await.expect("it ends");
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guarded"] => serve(true).await,
        ["bare"] => serve(false).await,
        ["attack", address, connections] => {
            let (address, connections) = (address.parse().expect("an address"), connections.parse().expect("a number"));
            join_all((0..connections).map(|number| tokio::spawn(attack(address, number)))).await;
        }
        [connections, seconds] if connections.parse::<usize>().is_ok() && seconds.parse::<u64>().is_ok() => {
            let (connections, seconds) = (connections.parse().expect("a number"), seconds.parse().expect("a number"));
            println!(
                "| server | honest clients | requests | failed | p50 | p99 | longest |\n|---|---|---|---|---|---|---|"
            );
            for server in ["bare", "guarded"] {
                measure(server, connections, Duration::from_secs(seconds)).await;
            }
        }
        _ => {
            eprintln!("usage: hostile-client CONNECTIONS SECONDS");
            std::process::exit(2);
        }
    }
}
