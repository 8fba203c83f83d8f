//! The annotated handlers and their policies, as the inspector reports them.

use std::time::Duration;

use serde::Serialize;

use crate::operate::entry_view::millis;
use crate::policy::Policy;
use crate::policy::values::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, Isolation, KeyFormat, KeySource, Methods,
    OnStoreError, Oversize, Stream,
};

/// One annotated handler: the arguments of its attribute, with the defaults filled in.
#[derive(Serialize)]
pub(super) struct HandlerReport {
    pub(super) handler: String,
    pub(super) file: &'static str,
    line: u32,
    pub(super) scope: String,
    pub(super) shared_scope: bool,
    pub(super) store: String,
    ttl_ms: u64,
    pub(super) cache: String,
    pub(super) key: String,
    pub(super) required: bool,
    invalid_key: &'static str,
    min_key_length: usize,
    key_format: &'static str,
    pub(super) methods: String,
    pub(super) caller: bool,
    pub(super) fingerprint: &'static str,
    pub(super) in_flight: String,
    lease_ms: u64,
    pub(super) after_crash: &'static str,
    /// `None` for the database's default.
    pub(super) isolation: Option<&'static str>,
    max_body: usize,
    stream: &'static str,
    oversize: &'static str,
    keep_headers: Vec<String>,
    drop_headers: Vec<String>,
    on_store_error: &'static str,
    pub(super) transaction: Option<&'static str>,
    #[serde(skip)]
    pub(super) ttl: Duration,
    #[serde(skip)]
    pub(super) location: String,
}

/// Returns the statuses as text, such as `200-299, 409`.
fn statuses(cache: Cache<'_>) -> String {
    match cache {
        Cache::All => "all".to_owned(),
        Cache::Predicate => "cache_if".to_owned(),
        Cache::Statuses(ranges) => {
            let range = |(low, high): &(u16, u16)| if low == high { low.to_string() } else { format!("{low}-{high}") };
            listed(ranges.iter().map(range))
        }
    }
}

const fn fingerprint(source: FingerprintSource) -> &'static str {
    match source {
        FingerprintSource::Request => "request",
        FingerprintSource::Json => "json",
        FingerprintSource::Expression => "expression",
        FingerprintSource::Only => "only",
        FingerprintSource::None => "none",
    }
}

const fn isolation(level: Isolation) -> &'static str {
    match level {
        Isolation::RepeatableRead => "repeatable_read",
        Isolation::Serializable => "serializable",
    }
}

impl HandlerReport {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            handler: policy.handler(),
            file: policy.file(),
            line: policy.line(),
            scope: policy.scope().to_owned(),
            shared_scope: policy.shared_scope(),
            store: policy.store().unwrap_or(super::DEFAULT_STORE).to_owned(),
            ttl_ms: millis(policy.ttl()),
            cache: statuses(policy.cache()),
            key: match policy.key() {
                KeySource::Header => policy.header().to_owned(),
                KeySource::Expression => "expression".to_owned(),
            },
            required: policy.required(),
            invalid_key: match policy.invalid_key() {
                InvalidKeyPolicy::Reject => "reject",
                InvalidKeyPolicy::Ignore => "ignore",
            },
            min_key_length: policy.min_key_length(),
            key_format: match policy.key_format() {
                KeyFormat::Any => "any",
                KeyFormat::Uuid => "uuid",
            },
            methods: match policy.methods() {
                Methods::Any => "any".to_owned(),
                Methods::Only(names) => listed(names.iter().map(str::to_owned)),
            },
            caller: policy.has_caller(),
            fingerprint: fingerprint(policy.fingerprint()),
            in_flight: match policy.in_flight() {
                InFlight::Reject => "reject".to_owned(),
                InFlight::Wait(limit) => format!("wait {}", humantime::format_duration(limit)),
            },
            lease_ms: millis(policy.lease()),
            after_crash: match policy.after_crash() {
                AfterCrash::Rerun => "rerun",
                AfterCrash::Reject => "reject",
            },
            isolation: policy.isolation().map(isolation),
            max_body: policy.max_body(),
            stream: match policy.stream() {
                Stream::Record => "record",
                Stream::Pass => "pass",
            },
            oversize: match policy.oversize() {
                Oversize::Reject => "reject",
                Oversize::Rerun => "rerun",
            },
            keep_headers: policy.keep_headers().iter().map(str::to_owned).collect(),
            drop_headers: policy.drop_headers().iter().map(str::to_owned).collect(),
            on_store_error: match policy.on_store_error() {
                OnStoreError::Reject => "reject",
                OnStoreError::Run => "run",
            },
            transaction: policy.database(),
            ttl: policy.ttl(),
            location: format!("{}:{}", policy.file(), policy.line()),
        }
    }
}

fn listed(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}
