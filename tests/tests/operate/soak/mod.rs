//! A thousand connections for a while. After that, nothing may be left of them.
//!
//! `IDEMPOTENT_SOAK_SECONDS=<seconds>` sets the duration, by default 30; `cargo xtask chaos --soak` runs it for
//! minutes.

mod client;
mod server;
mod tally;

use std::time::Duration;

use futures_util::future::join_all;
use idempotent_tests::Seed;
use idempotent_tests::soak::Reading;
use tokio::time::Instant;

use self::server::SoakServer;
use self::tally::Tally;

const CONNECTIONS: u64 = 1_000;

/// Grows the allocator, connections and caches to the largest size that the load can need. No client pauses here. So if
/// the machine is busy for a moment later and requests pile up, they need no more memory than now.
const WARM_UP: Load = Load { length: Duration::from_secs(8), pause: Duration::ZERO };

/// The pause between two keys. It is long enough for a machine with two processors, and short enough that a key is done
/// long before its record expires.
const PAUSE: Duration = Duration::from_secs(3);

/// How much resident memory may grow after the warm-up, however long the load lasts.
///
/// The limit is above what the allocator keeps, which depends on the peak of the load and not on its length. It is far
/// below what a leak for each key would take: in ten minutes there are 270,000 keys, so a leak of 93 bytes for each of
/// them is noticed.
const GROWTH_KIB: u64 = 24 * 1024;

/// The SQLite store opens its four readers when it first needs them, possibly after the warm-up. Each may open up to
/// three files.
const READERS_FILES: usize = 12;

#[derive(Clone, Copy)]
struct Load {
    length: Duration,
    pause: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_leave_nothing_behind() {
    let seed = Seed::of_this_run();
    let seconds = match std::env::var("IDEMPOTENT_SOAK_SECONDS") {
        Ok(seconds) => seconds.parse().expect("IDEMPOTENT_SOAK_SECONDS is a number"),
        Err(_) => 30,
    };
    server::raise_descriptor_limit(std::process::id(), 3 * CONNECTIONS);
    let mut server = SoakServer::start().await;
    let idle = server.reading().await;
    let warm = load(&server, seed, 0, WARM_UP).await;
    let before = server.at_rest(&idle).await;
    println!("idle:    {idle:?}\nwarm-up: {warm:?}\nbefore:  {before:?}");
    let tally = load(&server, seed, 1, Load { length: Duration::from_secs(seconds), pause: PAUSE }).await;
    let after = server.at_rest(&idle).await;
    println!("load of {seconds} s: {tally:?}\nafter:   {after:?}");
    assert_flat(&before, &after);
    let executions = after.executions - before.executions;
    assert!(
        (tally.keys..=tally.keys + tally.overdue).contains(&executions),
        "{executions} executions of {} keys, {seed}",
        tally.keys
    );
    assert!(tally.keys >= CONNECTIONS && tally.overdue < tally.keys / 2, "{tally:?}");
    assert!(tally.replays > 0 && tally.in_flight > 0 && tally.left > 0, "not all was met: {tally:?}");
}

async fn load(server: &SoakServer, seed: Seed, round: u64, load: Load) -> Tally {
    let end = Instant::now() + load.length;
    let address = server.address();
    let clients = (0..CONNECTIONS).map(|number| {
        tokio::spawn(async move {
            let random = seed.random(round * CONNECTIONS + number);
            client::Client::new(address, random, format!("{round}-{number}"), load.pause).work(end).await
        })
    });
    let tallies = join_all(clients).await;
    tallies.into_iter().map(|tally| tally.expect("no client fails")).sum()
}

fn assert_flat(before: &Reading, after: &Reading) {
    assert_eq!(after.memory_bytes, 0, "the memory store counts bytes of entries that are gone");
    assert!(
        after.descriptors <= before.descriptors + READERS_FILES,
        "descriptors are left open: {before:?}, {after:?}"
    );
    let growth = after.resident_kib.saturating_sub(before.resident_kib);
    println!("resident memory grew by {growth} KiB");
    assert!(growth <= GROWTH_KIB, "memory is not flat: {growth} KiB more");
}
