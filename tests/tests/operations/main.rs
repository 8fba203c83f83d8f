//! What the runtime tells those who run it, and what the pages make of it.

mod exposition;
mod metrics;
mod pages;
