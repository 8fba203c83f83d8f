//! The pages for operators are correct: dashboard, alerts and runbook use names that the program emits, and refer to
//! each other.

mod alerts;
mod dashboard;
mod look_ups;
mod promql;
mod runbook;

use std::fs;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/operations").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).expect("the document is there")
}
