//! The metric series of an installed registry begin before any request.

use idempotent_runtime::metrics::{REQUESTS_TOTAL, STEP_FAILURES_TOTAL, STORE_ERRORS_TOTAL};
use idempotent_runtime::{Registry, store::MemoryStore};
use idempotent_tests::alone;
use metrics_exporter_prometheus::PrometheusBuilder;

#[test]
fn series_of_handlers_and_stores_begin_at_install() {
    if !alone(series_of_handlers_and_stores_begin_at_install) {
        return;
    }
    let recorder = PrometheusBuilder::new().build_recorder();
    let registry = Registry::builder(MemoryStore::new()).store("payments", MemoryStore::new()).build();
    assert_eq!(recorder.handle().render(), "");
    metrics::with_local_recorder(&recorder, || registry.install().map(drop)).expect("the only one");
    let text = recorder.handle().render();
    for series in [
        format!("{REQUESTS_TOTAL}{{scope=\"default-store\",outcome=\"outcome_unknown\"}} 0"),
        format!("{STEP_FAILURES_TOTAL}{{scope=\"default-store\",outcome=\"step_failed\"}} 0"),
        format!("{STORE_ERRORS_TOTAL}{{store=\"default\",op=\"claim\"}} 0"),
        format!("{STORE_ERRORS_TOTAL}{{store=\"payments\",op=\"claim\"}} 0"),
    ] {
        assert!(text.lines().any(|line| line == series), "{series}: {text}");
    }
}
