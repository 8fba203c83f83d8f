//! Requests per second and latencies over loopback HTTP: bare and guarded, with each store, under the load of wrk.
//!
//! The argument is the length of a round in seconds.

const SECONDS: u32 = 2;

fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1);
    let seconds = argument.map_or(SECONDS, |seconds| seconds.parse().expect("a whole number of seconds"));
    idempotent_benches::loopback::measure(seconds)?.print();
    Ok(())
}
