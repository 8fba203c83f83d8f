//! Plays the pages of the guide over HTTP: each statement of a page, and what the page warns of.

mod browsers;
mod changing_a_policy;
mod compatibility;
mod errors_in_transactions;
mod middleware_order;
mod sea_tx;
mod shutdown;
mod webhooks;

/// The text of a page.
fn page(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../idempotent-runtime/src/guide");
    std::fs::read_to_string(format!("{folder}/{name}.md")).expect("the page is there")
}
