//! An operator's decision on a request whose outcome is unknown. The engine validates the decision as it validates a
//! response.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::record::envelope::Place;
use crate::record::headers::check_replayable;
use crate::record::protection::AtRest;
use crate::record::{Record, RecordedBody, now_in_millis};
use crate::step::claim::headers_of_resolved;
use crate::store::entry::{Entry, EntryState};
use crate::store::resolution::Resolution;

/// What an operator has found out about a request whose outcome is unknown, and the reason.
///
/// Pass the finding to [`Registry::resolve`](crate::Registry::resolve). The program `idempotent` uses findings too.
///
/// # Examples
///
/// ```
/// use http::Response;
/// use idempotent_runtime::operate::Finding;
///
/// let receipt = Response::builder()
///     .status(201)
///     .header("content-type", "application/json")
///     .body(r#"{"id":"ch_17"}"#)?;
/// let finding = Finding::executed(receipt, "ch_17 is at the provider, under the downstream key").by("alice");
///
/// let not_executed = Finding::not_executed("the provider has no charge with the downstream key").by("alice");
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "a finding does nothing until the key is resolved"]
pub struct Finding {
    response: Option<Response<Bytes>>,
    ttl: Option<Duration>,
    by: Option<String>,
    reason: String,
    store: Option<String>,
    #[cfg(feature = "seal")]
    sealing: Option<crate::record::sealing::SealingKeys>,
}

/// `Debug` shows neither the headers and the body of the response nor the reason.
impl fmt::Debug for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finding").field("status", &self.status()).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// The limits that apply if the finding names none.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) ttl: Duration,
    pub(crate) max_body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ttl: idempotent_policy::TTL, max_body: idempotent_policy::MAX_BODY }
    }
}

impl Finding {
    /// Creates a finding that the request was executed. Its retries get this response until the [`ttl`](Self::ttl) has
    /// passed. A retry after that runs the handler.
    pub fn executed(response: Response<impl Into<Bytes>>, reason: impl Into<String>) -> Self {
        Self::new(Some(response.map(Into::into)), reason.into())
    }

    /// Creates a finding that the request was not executed: the next retry runs the handler as the first attempt.
    pub fn not_executed(reason: impl Into<String>) -> Self {
        Self::new(None, reason.into())
    }

    fn new(response: Option<Response<Bytes>>, reason: String) -> Self {
        Self {
            response,
            ttl: None,
            by: None,
            reason,
            store: None,
            #[cfg(feature = "seal")]
            sealing: None,
        }
    }

    /// Sets how long retries get the response. A retry after that time runs the handler. By default,
    /// [`Registry::resolve`](crate::Registry::resolve) uses the longest `ttl` of the handlers of the scope, and
    /// [`resolution`](Self::resolution) uses 24 hours.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// Sets the name of the operator for the audit events; `unknown` by default.
    pub fn by(self, operator: impl Into<String>) -> Self {
        Self { by: Some(operator.into()), ..self }
    }

    /// Sets the name of the store in the registry; `default` by default. Sealed records are bound to this name.
    /// [`Registry::resolve`](crate::Registry::resolve) uses the name of its own store instead.
    ///
    /// ```
    /// use idempotent_runtime::operate::Finding;
    ///
    /// let receipt = http::Response::new("paid");
    /// let finding = Finding::executed(receipt, "the provider has ch_17").in_store("payments");
    /// ```
    pub fn in_store(self, name: impl Into<String>) -> Self {
        Self { store: Some(name.into()), ..self }
    }

    /// Seals the response as a registry with these keys does, for its store [`in_store`](Self::in_store).
    /// [`Registry::resolve`](crate::Registry::resolve) seals with its own keys instead.
    #[cfg(feature = "seal")]
    pub fn seal_with(self, keys: impl Into<crate::record::sealing::SealingKeys>) -> Self {
        Self { sealing: Some(keys.into()), ..self }
    }

    /// Returns how the operator knows the outcome.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Returns the name of the operator.
    pub fn operator(&self) -> Option<&str> {
        self.by.as_deref()
    }

    /// Returns the status of the response. Returns `None` if the request was not executed.
    pub fn status(&self) -> Option<StatusCode> {
        self.response.as_ref().map(Response::status)
    }

    /// Returns the resolution of this entry, for [`StoreAdmin::resolve`](crate::store::StoreAdmin::resolve). That
    /// method also needs the key of the entry and the token of its claim.
    ///
    /// # Errors
    ///
    /// [`InvalidFinding`] says what is wrong.
    pub fn resolution(&self, entry: &Entry) -> Result<Resolution, InvalidFinding> {
        #[cfg(feature = "seal")]
        let at_rest = AtRest { sealing: self.sealing.clone(), ..AtRest::default() };
        #[cfg(not(feature = "seal"))]
        let at_rest = AtRest::default();
        self.resolution_at_rest(entry, self.store.as_deref().unwrap_or("default"), &at_rest, Limits::default())
    }

    pub(crate) fn resolution_at_rest(
        &self,
        entry: &Entry,
        store: &str,
        at_rest: &AtRest,
        limits: Limits,
    ) -> Result<Resolution, InvalidFinding> {
        if self.reason.trim().is_empty() {
            return Err(InvalidFinding::NoReason);
        }
        if !matches!(entry.state, EntryState::Claimed { .. }) {
            return Err(InvalidFinding::IsRecord);
        }
        let Some(response) = &self.response else { return Ok(Resolution::NotExecuted) };
        let ttl = self.ttl.unwrap_or(limits.ttl);
        idempotent_policy::check_ttl(ttl).map_err(|wrong| InvalidFinding::Ttl(wrong.to_owned()))?;
        let headers = match entry.key.step_of() {
            None => headers_of(response)?,
            Some(_) => headers_of_step(response)?,
        };
        // HTTP would drop the body, and a record cannot be changed afterwards.
        if matches!(response.status().as_u16(), 204 | 205 | 304) && !response.body().is_empty() {
            let problem = "a response with 204, 205 or 304 has no body: leave the body out, or give another status";
            return Err(InvalidFinding::Status(problem));
        }
        let (bytes, most) = (response.body().len(), limits.max_body);
        if bytes > most {
            return Err(InvalidFinding::BodyTooLarge { bytes, most });
        }
        let body = RecordedBody::Whole(response.body().clone());
        let record = Record::new(response.status(), headers, body, entry.fingerprint, now_in_millis());
        // The result of a step gets its final lifetime when the handler ends, so no lifetime is sealed here.
        let told = entry.key.step_of().is_none().then_some(ttl);
        let record = at_rest.seal(Place { store, key: &entry.key }, &record, told).into_owned();
        Ok(Resolution::executed(record, ttl))
    }
}

fn headers_of(response: &Response<Bytes>) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidFinding> {
    idempotent_policy::check_status(response.status().as_u16()).map_err(InvalidFinding::Status)?;
    let lines = response.headers().iter();
    lines
        .map(|(name, value)| {
            let checked = check_replayable(name, value);
            checked.map(|()| (name.clone(), value.clone())).map_err(InvalidFinding::Header)
        })
        .collect()
}

/// Checks the headers, and returns those with which a step records its result.
fn headers_of_step(response: &Response<Bytes>) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidFinding> {
    let json = HeaderValue::from_static("application/json");
    let is_result = response.status() == StatusCode::OK
        && response.headers().iter().all(|(name, value)| name == header::CONTENT_TYPE && *value == json)
        && serde_json::from_slice::<serde::de::IgnoredAny>(response.body()).is_ok();
    if is_result { Ok(headers_of_resolved()) } else { Err(InvalidFinding::StepResult) }
}

/// The error of an invalid finding. Nothing was changed. The message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidFinding {
    /// The reason is missing. The audit needs a reason.
    #[error("there is no reason: say how you know what became of the request")]
    NoReason,
    /// The entry is a record: it has a response, or says that the response could not be recorded.
    #[error("the entry is a record: it is known that its request was executed, and a record is never changed")]
    IsRecord,
    /// The status cannot be replayed.
    #[error("the status: {0}")]
    Status(&'static str),
    /// The header cannot be replayed.
    #[error("a header: {0}")]
    Header(String),
    /// The `ttl` is too short or too long.
    #[error("the ttl {0}")]
    Ttl(String),
    /// The body is larger than a handler of this scope may record.
    #[error("the body has {bytes} bytes, and a recorded body has at most {most}")]
    #[non_exhaustive]
    BodyTooLarge {
        /// The number of bytes in the body.
        bytes: usize,
        /// The number of bytes that are allowed.
        most: usize,
    },
    /// A step has a result instead of a response.
    #[error(
        "the entry is that of a step, which has a result and no response: give the status 200, no header, and the result as JSON in the body"
    )]
    StepResult,
}
