//! A policy that is built at run time, for the layer.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, Method, response};

use crate::deadline::LONGEST;
use crate::policy::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, Methods, OnStoreError, Oversize, Policy,
};
use crate::record::headers::NEVER_KEPT;

/// Collects the options of a [`Policy`] for an [`IdempotencyLayer`](crate::IdempotencyLayer): those of the attribute, except
/// the ones that need a handler's arguments.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use idempotent_runtime::{InFlight, Policy};
///
/// let policy = Policy::builder("charges")
///     .ttl(Duration::from_hours(48))
///     .cache((200..=299).chain([402, 409]))
///     .in_flight(InFlight::Wait(Duration::from_secs(5)))
///     .required()
///     .build()?;
/// assert_eq!(policy.scope(), "charges");
/// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PolicyBuilder {
    policy: Policy,
    lease: Option<Duration>,
    wrong: Vec<String>,
}

impl Policy {
    /// A policy with this scope, and options to follow. The defaults are those of the attribute.
    ///
    /// Policies of handlers and layers with the same scope replay each other's records. `install` compares only the scopes of
    /// handlers, because a layer can be created at any time.
    #[track_caller]
    pub fn builder(scope: impl Into<String>) -> PolicyBuilder {
        let scope = scope.into();
        let wrong = name("scope", &scope).into_iter().collect();
        let scope: &'static str = scope.leak();
        PolicyBuilder { policy: Self::new("layer", scope), lease: None, wrong }
    }
}

impl PolicyBuilder {
    /// How long a record is kept, at least a second and at most 100 years; 24 hours by default.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = ttl;
        self.wrong.extend(too_long("ttl", ttl, ".ttl(Duration::from_hours(24))"));
        if ttl < Duration::from_secs(1) {
            self.wrong.push("`ttl` must be at least 1s; write `.ttl(Duration::from_hours(24))`".to_owned());
        }
        self
    }

    /// The statuses that are recorded; `[200..=299, 303]` by default.
    pub fn cache(mut self, statuses: impl IntoIterator<Item = u16>) -> Self {
        let mut statuses: Vec<u16> = statuses.into_iter().collect();
        statuses.sort_unstable();
        statuses.dedup();
        if statuses.is_empty() {
            self.wrong.push("`cache` must name at least one status; write `.cache([201, 409])`".to_owned());
        }
        if let Some(wrong) = statuses.iter().find(|status| !(200..=599).contains(*status)) {
            self.wrong.push(format!("`cache`: {wrong} is no status that could be recorded; those are 200 to 599"));
        }
        let ranges = statuses.chunk_by(|a, b| a + 1 == *b).map(|range| (range[0], range[range.len() - 1]));
        self.policy.cache = Cache::Statuses(ranges.collect::<Vec<_>>().leak());
        self
    }

    /// Records every response, whatever its status.
    pub fn cache_all(mut self) -> Self {
        self.policy.cache = Cache::All;
        self
    }

    /// Records the responses for which this function returns true.
    pub fn cache_if(mut self, predicate: fn(&response::Parts) -> bool) -> Self {
        self.policy.cache = Cache::Predicate;
        self.policy.predicate = Some(predicate);
        self
    }

    /// The header that carries the key; `idempotency-key` by default.
    pub fn header(mut self, header: impl AsRef<str>) -> Self {
        if let Some(header) = self.header_name("header", header.as_ref()) {
            self.policy.header = header;
        }
        self
    }

    /// A request without a key gets 400.
    pub fn required(mut self) -> Self {
        self.policy.required = true;
        self
    }

    /// How a malformed key is treated; [`InvalidKeyPolicy::Reject`] by default.
    pub fn invalid_key(mut self, policy: InvalidKeyPolicy) -> Self {
        self.policy.invalid_key = policy;
        self
    }

    /// The methods that are guarded; POST, PUT, PATCH and DELETE by default.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        let names: Vec<&'static str> = methods.into_iter().map(|method| &*method.as_str().to_owned().leak()).collect();
        if names.is_empty() {
            self.wrong
                .push("`methods` must name at least one; write `.methods([Method::POST, Method::PATCH])`".to_owned());
        }
        self.policy.methods = Methods::Only(names.leak());
        self
    }

    /// Guards requests with any method.
    pub fn any_method(mut self) -> Self {
        self.policy.methods = Methods::Any;
        self
    }

    /// Compares a JSON body in its canonical form, so spaces and the order of members do not matter, like `fingerprint =
    /// json` of the attribute.
    pub fn json_fingerprint(mut self) -> Self {
        self.policy.fingerprint = FingerprintSource::Json;
        self
    }

    /// A retry need not repeat method, path, query and body. The body then reaches the service as it arrives, whatever its
    /// length.
    pub fn without_fingerprint(mut self) -> Self {
        self.policy.fingerprint = FingerprintSource::None;
        self
    }

    /// How a duplicate of a running request is answered; [`InFlight::Reject`] by default. `InFlight::Wait(Duration::MAX)`
    /// waits without a limit.
    pub fn in_flight(mut self, in_flight: InFlight) -> Self {
        if matches!(in_flight, InFlight::Wait(limit) if limit.is_zero()) {
            self.wrong.push(
                "`in_flight` must wait for some time; write `.in_flight(InFlight::Wait(Duration::from_secs(5)))`"
                    .to_owned(),
            );
        }
        self.policy.in_flight = in_flight;
        self
    }

    /// How long a dead process holds a key, at least 100 ms and at most 100 years; 30 seconds by default, or `ttl` if that is
    /// shorter.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.wrong.extend(too_long("lease", lease, ".lease(Duration::from_secs(30))"));
        if lease < Duration::from_millis(100) {
            self.wrong.push("`lease` must be at least 100ms; write `.lease(Duration::from_secs(30))`".to_owned());
        }
        self.lease = Some(lease);
        self
    }

    /// What the next request can do if the process died in the handler; [`AfterCrash::Rerun`] by default.
    pub fn after_crash(mut self, after_crash: AfterCrash) -> Self {
        self.policy.after_crash = after_crash;
        self
    }

    /// The largest recorded body, in bytes; 4 MiB by default.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.policy.max_body = bytes;
        self
    }

    /// What a retry gets if the first response was too large to record; [`Oversize::Reject`] by default.
    pub fn oversize(mut self, oversize: Oversize) -> Self {
        self.policy.oversize = oversize;
        self
    }

    /// Headers that are recorded although the default leaves them out.
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names = self.header_names("keep_headers", names);
        for name in names.iter().filter(|name| NEVER_KEPT.contains(name)) {
            self.wrong.push(format!(
                "`keep_headers`: `{name}` belongs to one connection or answer and cannot be replayed; remove it"
            ));
        }
        self.policy.keep_headers = names.leak();
        self
    }

    /// Headers that are not recorded although the default records them.
    pub fn drop_headers(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.policy.drop_headers = self.header_names("drop_headers", names).leak();
        self
    }

    /// The store with this name in the registry, instead of the default store.
    pub fn store(mut self, store: impl Into<String>) -> Self {
        let store = store.into();
        self.wrong.extend(name("store", &store));
        self.policy.store = Some(store.leak());
        self
    }

    /// What happens to a request if the store cannot be asked; [`OnStoreError::Reject`] by default.
    pub fn on_store_error(mut self, policy: OnStoreError) -> Self {
        self.policy.on_store_error = policy;
        self
    }

    /// The policy. The memory of its names is never freed, so build it once, at start-up.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] lists all mistakes, each with a correct value.
    pub fn build(mut self) -> Result<Policy, InvalidPolicy> {
        let ttl = self.policy.ttl;
        match self.lease {
            Some(lease) if lease > ttl => self.wrong.push(format!(
                "`lease` must not be longer than `ttl`, which is {}: a claim would outlive its memory",
                humantime::format_duration(ttl)
            )),
            Some(lease) => self.policy.lease = lease,
            None => self.policy.lease = self.policy.lease.min(ttl),
        }
        if let Some(both) = self.policy.keep_headers.iter().find(|name| self.policy.drop_headers.contains(name)) {
            self.wrong.push(format!("`{both}` is both in `keep_headers` and in `drop_headers`; remove one of them"));
        }
        if self.wrong.is_empty() { Ok(self.policy) } else { Err(InvalidPolicy(self.wrong)) }
    }

    fn header_names(&mut self, option: &str, names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<&'static str> {
        names.into_iter().filter_map(|name| self.header_name(option, name.as_ref())).collect()
    }

    /// In lower case.
    fn header_name(&mut self, option: &str, name: &str) -> Option<&'static str> {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            return Some(name.as_str().to_owned().leak());
        }
        self.wrong.push(format!(
            "`{option}`: {name:?} is no header name: letters, digits and `-` without spaces, such as \"x-request-id\""
        ));
        None
    }
}

/// What is wrong with a time that stores add to their clocks.
fn too_long(option: &str, span: Duration, example: &str) -> Option<String> {
    let longest = humantime::format_duration(LONGEST);
    (span > LONGEST).then(|| format!("`{option}` must be at most {longest}; write `{example}`"))
}

/// What is wrong with a name that people read in logs and stores.
fn name(option: &str, name: &str) -> Option<String> {
    let wrong = if name.trim().is_empty() {
        "must not be blank"
    } else if name.chars().any(char::is_control) {
        "must not hold control characters"
    } else if name.chars().count() > 255 {
        "must not be longer than 255 characters"
    } else {
        return None;
    };
    Some(format!("`{option}` {wrong}"))
}

/// What is wrong with a policy: all mistakes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPolicy(Vec<String>);

impl InvalidPolicy {
    /// The mistakes, each with a correct value.
    pub fn mistakes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy is invalid: {}", self.0.join("; "))
    }
}

impl std::error::Error for InvalidPolicy {}
