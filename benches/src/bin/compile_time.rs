//! What a hundred annotated handlers cost the compiler.
//!
//! The first argument is how many rounds there are; the second one is the folder of another checkout's runtime.

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
