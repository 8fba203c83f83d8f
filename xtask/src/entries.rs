//! Measures how soon operators see the claims among millions of records.

use crate::step::Failure;
use crate::{cargo, prerequisites};

const ENTRIES: usize = 10_000_000;

/// The arguments of `cargo xtask entries`.
pub(crate) struct Entries<'a> {
    entries: usize,
    /// The store, or all stores by default.
    store: &'a str,
}

/// `None` if the arguments are not valid.
pub(crate) fn planned<'a>(arguments: &[&'a str]) -> Option<Entries<'a>> {
    let mut planned = Entries { entries: ENTRIES, store: "" };
    for option in arguments.chunks(2) {
        match *option {
            ["--entries", entries] => planned.entries = entries.parse().ok()?,
            ["--store", store @ ("memory" | "sqlite" | "postgres" | "redis")] => planned.store = store,
            _ => return None,
        }
    }
    Some(planned)
}

/// Runs one store after another, because each fills memory or disk and needs the processors.
pub(crate) fn run(Entries { entries, store }: &Entries<'_>) -> Result<(), Failure> {
    prerequisites::install()?;
    let name = if store.is_empty() { "first_page_among_many_in".to_owned() } else { format!("many_in_{store}") };
    let arguments =
        format!("test -p idempotent-tests --all-features --test operate -- {name} --nocapture --test-threads=1");
    cargo(&format!("operators among {entries} records"), &arguments)
        .env("IDEMPOTENT_ENTRIES", entries.to_string())
        .run()
}
