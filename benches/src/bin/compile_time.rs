//! Measures how much a hundred annotated handlers add to the compile time.
//!
//! The first argument is the number of rounds. The second one is the folder of the runtime in another checkout.

use std::path::PathBuf;

const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../idempotent-runtime");
    let runtime = arguments.next().map_or_else(|| ours.into(), PathBuf::from).canonicalize()?;
    idempotent_benches::compile_time::measure(rounds, &runtime)?.print();
    Ok(())
}
