//! What the runtime reports to operators, as metrics, logs and traces, and whether the pages for operators use it
//! correctly.
//!
//! The first guarded request of a process decides whether the process has metrics. So each test that sends one first
//! calls `Exposition::begin`.

mod exposition;
mod metrics;
mod pages;
mod recorded_traces;
mod telemetry;
mod trace_links;
mod traces;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
