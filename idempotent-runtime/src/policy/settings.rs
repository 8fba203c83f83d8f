//! The settings of a policy, as the literal that the attribute expands to.

use std::time::Duration;

use crate::policy::values::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, Isolation, KeyFormat, KeySource, Methods,
    OnStoreError, Oversize, Stream,
};

/// A field for each argument of the attribute that is part of the policy, and whether the scope is the default one. The
/// attribute sets the fields of its arguments and leaves the defaults in the others.
#[doc(hidden)]
#[expect(clippy::struct_excessive_bools, reason = "each is one argument with two values")]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub scope: &'static str,
    pub has_default_scope: bool,
    pub shared_scope: bool,
    pub ttl: Duration,
    pub cache: Cache<'static>,
    pub header: &'static str,
    pub key: KeySource,
    pub required: bool,
    pub invalid_key: InvalidKeyPolicy,
    pub min_key_length: usize,
    pub key_format: KeyFormat,
    pub methods: Methods<'static>,
    /// Whether the argument `caller` is given.
    pub caller: bool,
    pub fingerprint: FingerprintSource,
    pub in_flight: InFlight,
    pub lease: Duration,
    pub after_crash: AfterCrash,
    pub isolation: Option<Isolation>,
    pub stream: Stream,
    pub max_body: usize,
    pub oversize: Oversize,
    pub keep_headers: &'static [&'static str],
    pub drop_headers: &'static [&'static str],
    pub store: Option<&'static str>,
    pub on_store_error: OnStoreError,
}

#[doc(hidden)]
impl Settings {
    pub const DEFAULT: Self = Self {
        scope: "",
        has_default_scope: false,
        shared_scope: false,
        ttl: idempotent_policy::TTL,
        cache: Cache::Statuses(idempotent_policy::STATUSES),
        header: idempotent_policy::HEADER,
        key: KeySource::Header,
        required: false,
        invalid_key: InvalidKeyPolicy::Reject,
        min_key_length: 1,
        key_format: KeyFormat::Any,
        methods: Methods::Only(idempotent_policy::METHODS),
        caller: false,
        fingerprint: FingerprintSource::Request,
        in_flight: InFlight::Reject,
        lease: idempotent_policy::LEASE,
        after_crash: AfterCrash::Rerun,
        isolation: None,
        stream: Stream::Record,
        max_body: idempotent_policy::MAX_BODY,
        oversize: Oversize::Reject,
        keep_headers: &[],
        drop_headers: &[],
        store: None,
        on_store_error: OnStoreError::Reject,
    };
}
