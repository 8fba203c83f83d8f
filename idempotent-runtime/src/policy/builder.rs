//! Builds a policy at run time, for the layer.

use std::panic::Location;
use std::time::Duration;

use http::{Method, response};

use crate::policy::built::Built;
use crate::policy::invalid_policy::InvalidPolicy;
use crate::policy::location::SourceLocation;
use crate::policy::values::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, KeyFormat, Methods, Names, OnStoreError,
    Oversize, Stream,
};
use crate::policy::{CacheIf, Policy, Settings};

/// Collects the options of a [`Policy`] for an [`IdempotencyLayer`](crate::IdempotencyLayer): those of the attribute,
/// except the ones that need a handler's arguments.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use idempotent_runtime::{InFlight, Policy};
///
/// let policy = Policy::builder("charges")
///     .ttl(Duration::from_secs(48 * 60 * 60))
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
    location: SourceLocation,
    settings: Settings,
    built: Built,
    predicate: Option<CacheIf>,
    lease: Option<Duration>,
    wrong: Vec<String>,
}

impl Policy {
    /// Begins a policy with this scope. The defaults of its options are those of the attribute.
    ///
    /// Policies of handlers and layers with the same scope replay each other's records. `install` compares only the
    /// scopes of handlers, because a layer can be created at any time.
    #[track_caller]
    pub fn builder(scope: impl Into<String>) -> PolicyBuilder {
        let location = Location::caller();
        let (file, line, column) = (location.file(), location.line(), location.column());
        let built = Built {
            scope: scope.into().into(),
            header: idempotent_policy::HEADER.to_owned(),
            statuses: idempotent_policy::STATUSES.to_vec(),
            methods: idempotent_policy::METHODS.iter().map(ToString::to_string).collect(),
            keep_headers: Vec::new(),
            drop_headers: Vec::new(),
            store: None,
        };
        let wrong = wrong_name("scope", &built.scope).into_iter().collect();
        PolicyBuilder {
            location: SourceLocation { module: "layer", function: "", file, line, column, path: || "" },
            settings: Settings::DEFAULT,
            built,
            predicate: None,
            lease: None,
            wrong,
        }
    }
}

impl PolicyBuilder {
    /// Sets how long a record is kept, at least a second and at most 100 years; 24 hours by default.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.check("ttl", idempotent_policy::check_ttl(ttl), ".ttl(Duration::from_secs(24 * 60 * 60))");
        self.settings.ttl = ttl;
        self
    }

    /// Sets the statuses that are recorded; `[200..=299, 303]` by default.
    pub fn cache(mut self, statuses: impl IntoIterator<Item = u16>) -> Self {
        let mut statuses: Vec<u16> = statuses.into_iter().collect();
        statuses.sort_unstable();
        statuses.dedup();
        self.check("cache", idempotent_policy::check_count(statuses.len()), ".cache([201, 409])");
        for status in &statuses {
            let wrong = idempotent_policy::check_status(*status).err();
            self.wrong.extend(wrong.map(|wrong| format!("`cache` holds {status}: {wrong}")));
        }
        let ranges = statuses.chunk_by(|a, b| a + 1 == *b).map(|range| (range[0], range[range.len() - 1]));
        self.built.statuses = ranges.collect();
        self.settings.cache = Cache::Statuses(&[]);
        self
    }

    /// Records every response, whatever its status.
    pub fn cache_all(mut self) -> Self {
        self.settings.cache = Cache::All;
        self
    }

    /// Records the responses for which this function returns true.
    pub fn cache_if(mut self, predicate: fn(&response::Parts) -> bool) -> Self {
        self.settings.cache = Cache::Predicate;
        self.predicate = Some(predicate);
        self
    }

    /// Sets the header that carries the key; `idempotency-key` by default. It cannot be one that identifies the client,
    /// such as `authorization`, or one with another meaning in HTTP, such as `content-type`.
    pub fn header(mut self, header: impl AsRef<str>) -> Self {
        if let Some(header) = self.header_name("header", header.as_ref()) {
            let wrong = idempotent_policy::check_key_header(&header).err();
            self.wrong.extend(wrong.map(|wrong| format!("`header`: {wrong}")));
            self.built.header = header;
        }
        self
    }

    /// Rejects requests without a key with 400.
    pub fn required(mut self) -> Self {
        self.settings.required = true;
        self
    }

    /// Sets how a malformed key is treated; [`InvalidKeyPolicy::Reject`] by default.
    pub fn invalid_key(mut self, policy: InvalidKeyPolicy) -> Self {
        self.settings.invalid_key = policy;
        self
    }

    /// Sets the least number of characters of a key, from 1 to 255; 1 by default. A shorter key is a malformed one.
    pub fn min_key_length(mut self, characters: usize) -> Self {
        self.settings.min_key_length = characters;
        self
    }

    /// Sets the form that keys must have; [`KeyFormat::Any`] by default. A key of another form is a malformed one.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{KeyFormat, Policy};
    ///
    /// let policy = Policy::builder("charges").key_format(KeyFormat::Uuid).build()?;
    /// assert_eq!(policy.key_format(), KeyFormat::Uuid);
    /// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
    /// ```
    pub fn key_format(mut self, format: KeyFormat) -> Self {
        self.settings.key_format = format;
        self
    }

    /// Sets the methods that are guarded; POST, PUT, PATCH and DELETE by default. Methods that HTTP does not define are
    /// allowed too, such as `QUERY`.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.built.methods.clear();
        for method in methods {
            match idempotent_policy::check_method(method.as_str()) {
                Ok(()) => self.built.methods.push(method.to_string()),
                Err(wrong) => self.wrong.push(format!("`methods`: {wrong}")),
            }
        }
        let counted = idempotent_policy::check_count(self.built.methods.len());
        self.check("methods", counted, ".methods([Method::POST, Method::PATCH])");
        self.settings.methods = Methods::Only(Names::constants(&[]));
        self
    }

    /// Guards requests with any method.
    pub fn any_method(mut self) -> Self {
        self.settings.methods = Methods::Any;
        self
    }

    /// Compares a JSON body in its canonical form, so spaces and the order of members do not matter, like
    /// `fingerprint = json` of the attribute.
    pub fn json_fingerprint(mut self) -> Self {
        self.settings.fingerprint = FingerprintSource::Json;
        self
    }

    /// Leaves method, path, query and body out of the fingerprint, so a retry need not repeat them. The body then
    /// reaches the service unread, whatever its length.
    pub fn without_fingerprint(mut self) -> Self {
        self.settings.fingerprint = FingerprintSource::None;
        self
    }

    /// Sets how a duplicate of a running request is answered; [`InFlight::Reject`] by default.
    /// `InFlight::Wait(Duration::MAX)` waits without a limit; a limit is at least 1 ms and at most 100 years.
    pub fn in_flight(mut self, in_flight: InFlight) -> Self {
        if let InFlight::Wait(limit) = in_flight
            && limit != Duration::MAX
        {
            let checked = idempotent_policy::check_wait(limit);
            self.check("in_flight", checked, ".in_flight(InFlight::Wait(Duration::from_secs(5)))");
        }
        self.settings.in_flight = in_flight;
        self
    }

    /// Sets how long a dead process holds a key, at least 100 ms and at most 100 years; 30 seconds by default, or `ttl`
    /// if that is shorter.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.check("lease", idempotent_policy::check_lease(lease), ".lease(Duration::from_secs(30))");
        self.lease = Some(lease);
        self
    }

    /// Sets what the next request can do if the process died in the handler; [`AfterCrash::Rerun`] by default.
    pub fn after_crash(mut self, after_crash: AfterCrash) -> Self {
        self.settings.after_crash = after_crash;
        self
    }

    /// Sets how much is recorded of a response whose length is not known before its end; [`Stream::Record`] by default.
    /// See [the guide](crate::guide::streaming).
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Policy, Stream};
    ///
    /// let policy = Policy::builder("cameras").stream(Stream::Pass).build()?;
    /// assert_eq!(policy.stream(), Stream::Pass);
    /// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
    /// ```
    pub fn stream(mut self, stream: Stream) -> Self {
        self.settings.stream = stream;
        self
    }

    /// Sets the largest recorded body, in bytes; 4 MiB by default.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.settings.max_body = bytes;
        self
    }

    /// Sets what a retry gets if the first response was too large to record, has no end, or was passed on unrecorded;
    /// [`Oversize::Reject`] by default.
    pub fn oversize(mut self, oversize: Oversize) -> Self {
        self.settings.oversize = oversize;
        self
    }

    /// Records these headers although the default leaves them out because they belong to one moment or give one client
    /// a secret: see [the guide](crate::guide::what_to_cache#what-is-recorded).
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.built.keep_headers = self.header_names("keep_headers", names, idempotent_policy::check_kept_header);
        self
    }

    /// Neither records nor replays these headers, although the default does both.
    pub fn drop_headers(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.built.drop_headers = self.header_names("drop_headers", names, idempotent_policy::check_dropped_header);
        self
    }

    /// Uses the store with this name in the registry, instead of the default store.
    pub fn store(mut self, store: impl Into<String>) -> Self {
        let store = store.into();
        self.wrong.extend(wrong_name("store", &store));
        self.built.store = Some(store);
        self
    }

    /// Sets what happens to a request if the store is unreachable; [`OnStoreError::Reject`] by default.
    pub fn on_store_error(mut self, policy: OnStoreError) -> Self {
        self.settings.on_store_error = policy;
        self
    }

    /// Builds the policy.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] lists all mistakes, each with a correct value.
    pub fn build(mut self) -> Result<Policy, InvalidPolicy> {
        match idempotent_policy::lease(self.lease, self.settings.ttl) {
            Ok(lease) => self.settings.lease = lease,
            Err(wrong) => self.wrong.push(wrong_lease(wrong, self.settings.ttl)),
        }
        let is_uuid = self.settings.key_format == KeyFormat::Uuid;
        if let Err(wrong) = idempotent_policy::check_min_key_length(self.settings.min_key_length, is_uuid) {
            self.wrong.push(format!("`min_key_length` {wrong}; write `.min_key_length(16)`"));
        }
        self.wrong.extend(idempotent_policy::check_disjoint(&self.built.keep_headers, &self.built.drop_headers).err());
        if !self.wrong.is_empty() {
            return Err(InvalidPolicy::new(self.wrong));
        }
        Ok(Policy {
            location: self.location,
            settings: self.settings,
            database: None,
            built: Some(Box::new(self.built)),
            predicate: self.predicate,
        })
    }

    fn check(&mut self, option: &str, checked: Result<(), &'static str>, example: &str) {
        self.wrong.extend(checked.err().map(|wrong| format!("`{option}` {wrong}; write `{example}`")));
    }

    fn header_names(
        &mut self,
        option: &str,
        names: impl IntoIterator<Item = impl AsRef<str>>,
        check: fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let names: Vec<_> = names.into_iter().filter_map(|name| self.header_name(option, name.as_ref())).collect();
        let wrong = names.iter().filter_map(|name| check(name).err());
        self.wrong.extend(wrong.map(|wrong| format!("`{option}`: {wrong}")));
        names
    }

    /// Returns the name in lower case, or notes a mistake.
    fn header_name(&mut self, option: &str, name: &str) -> Option<String> {
        let read = idempotent_policy::header_name(name);
        read.map_err(|wrong| self.wrong.push(format!("`{option}`: {wrong}"))).ok()
    }
}

/// Describes the mistake of a lease that is longer than this ttl.
pub(crate) fn wrong_lease(wrong: &str, ttl: Duration) -> String {
    format!("`lease` {wrong}; the ttl is {}", humantime::format_duration(ttl))
}

fn wrong_name(option: &str, name: &str) -> Option<String> {
    idempotent_policy::check_name(name).err().map(|wrong| format!("`{option}` {wrong}"))
}
