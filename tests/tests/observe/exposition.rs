//! The metrics that a Prometheus would read from this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use idempotent_runtime::metrics;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// The metrics of this process at one moment.
pub(crate) struct Exposition {
    text: String,
    samples: Vec<Sample>,
}

/// One line of the metrics.
pub(crate) struct Sample {
    /// The name, with the suffix of a histogram's part.
    pub(crate) name: String,
    /// The labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The value.
    pub(crate) value: f64,
}

impl Exposition {
    /// Installs the recorder. Every test of a process calls this first; only the first call installs it.
    ///
    /// # Panics
    ///
    /// When another recorder is installed.
    pub(crate) fn begin() {
        RECORDER.get_or_init(|| {
            let buckets = [
                (metrics::STORE_DURATION_SECONDS, metrics::STORE_DURATION_BUCKETS.as_slice()),
                (metrics::REPLAY_AGE_SECONDS, metrics::REPLAY_AGE_BUCKETS.as_slice()),
            ];
            let builder = buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
                builder.set_buckets_for_metric(Matcher::Full(name.into()), buckets).expect("there are buckets")
            });
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            ::metrics::set_global_recorder(recorder).expect("the first recorder");
            handle
        });
    }

    /// Reads the current metrics.
    ///
    /// # Panics
    ///
    /// Before [`begin`](Self::begin), and when a line cannot be parsed.
    pub(crate) fn scrape() -> Self {
        let text = RECORDER.get().expect("the test has begun to record").render();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect();
        Self { text, samples }
    }

    /// The text of the metrics.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The samples.
    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The sum of the samples with this name and these labels; `None` if there is none.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has =
            |sample: &Sample, (label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|v| v == value);
        let matching = self.samples.iter().filter(|sample| sample.name == name);
        matching
            .filter(|sample| labels.iter().all(|label| has(sample, label)))
            .map(|sample| sample.value)
            .reduce(|a, b| a + b)
    }

    /// The label names of each sample's name.
    pub(crate) fn labels(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut labels = BTreeMap::<&str, BTreeSet<&str>>::new();
        for sample in &self.samples {
            labels.entry(&sample.name).or_default().extend(sample.labels.keys().map(String::as_str));
        }
        labels
    }
}

/// Parses a line. Labels of this library never need escapes, so a line with an escape cannot be parsed.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
    };
    let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
        let (name, value) = label.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        (!value.contains(['"', '\\'])).then(|| (name.to_owned(), value.to_owned()))
    });
    Some(Sample { name: name.to_owned(), labels: labels.collect::<Option<_>>()?, value: value.parse().ok()? })
}
