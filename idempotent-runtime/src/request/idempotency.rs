//! The extractor through which a handler sees its own key, its attempt and its steps.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::observe::telemetry;
use crate::rejection::problem::Rejection;
use crate::request::context::Execution;
use crate::step::error::{StepError, StepErrorKind};
use crate::step::steps::{Begun, Steps};
use std::future::Future;

/// What the handler may know about the key under which it runs.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::{Idempotency, idempotent};
///
/// #[idempotent(scope = "charges")]
/// async fn create_charge(idempotency: Idempotency) -> String {
///     format!("attempt {} passes {} on", idempotency.attempt(), idempotency.downstream_key("stripe"))
/// }
/// ```
///
/// A clone of a request, as a batch handler or a middleware that hedges makes it, is a request of its own: its handler gets an
/// `Idempotency` of its own, with the key, the attempt and the steps of that copy. What was extracted before from the request
/// that was cloned tells nothing of the copies.
///
/// A unit test that calls the handler passes `Idempotency::default()`: that of a request without a key.
#[derive(Clone, Default)]
pub struct Idempotency(Arc<Execution>);

impl Idempotency {
    #[cfg(feature = "testing")]
    #[track_caller]
    pub(crate) fn of_test(key: &str, attempt: u32) -> Self {
        let execution = Execution::default();
        let key = crate::key::IdempotencyKey::new(key).unwrap_or_else(|reason| panic!("{key:?} is no key: {reason}"));
        let record_key = crate::key::RecordKey::new("test", None, key.as_str());
        execution.grant(key, record_key, crate::fingerprint::Fingerprint::from_bytes([0; 32]), attempt);
        Self(Arc::new(execution))
    }

    fn execution(&self) -> &Execution {
        self.0.owner()
    }

    /// The client's key, decoded; `None` when this request runs unguarded because it has none.
    pub fn key(&self) -> Option<&str> {
        self.execution().granted().map(|grant| grant.key.as_str())
    }

    /// How many times this key was claimed: 1, and one more for each claim that may have run the handler and left neither
    /// a record nor a word of its end, because its process died or was cut off from the store.
    ///
    /// Once there was such a one, the number only grows, until the key is recorded or its time to live is over: an attempt
    /// that ends with a status that is not recorded does not make the next one the first.
    pub fn attempt(&self) -> u32 {
        self.execution().granted().map_or(1, |grant| grant.attempt)
    }

    /// A key to pass on to `api`, another service that this handler calls: 32 hexadecimal digits, derived from scope,
    /// caller, key and fingerprint.
    ///
    /// It is the same on every attempt of one request, so that the other service recognises a repetition, and another one
    /// for each `api`. It differs from client to client, and from request to request: when a key is free again, because a
    /// response was not recorded, and comes with another request or other credentials, the other service sees a new
    /// operation. With a caller, credentials may be renewed between attempts; without one, they belong to the request. A
    /// request without a key gets a fresh one, since it is an execution of its own. Under an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer), a handler without the attribute gets the key of the layer's claim.
    pub fn downstream_key(&self, api: &str) -> String {
        let mut digest = Sha256::new();
        match self.execution().granted() {
            Some(grant) => {
                digest.update(grant.fingerprint.as_bytes());
                digest.update(grant.record_key.as_str());
            }
            None => digest.update(self.execution().unkeyed().as_u128().to_le_bytes()),
        }
        // A record key holds no NUL, so this ends it.
        digest.update([0]);
        digest.update(api);
        let digest: [u8; 32] = digest.finalize().into();
        format!("{:032x}", digest[..16].iter().fold(0_u128, |number, &byte| number << 8 | u128::from(byte)))
    }

    /// Runs `run` once for this key, and records what it came to: an attempt after a crash gets the recorded result in its
    /// place.
    ///
    /// The result is kept as JSON in the handler's store, under [`RecordKey::step`](crate::RecordKey::step), for the handler's `ttl` from then on;
    /// it is on its way through JSON in the attempt that makes it too, so that no attempt sees another value. With
    /// `digest_keys` and `seal_with` it is stored as responses are; the name is readable, so put no secret into it.
    ///
    /// # What it promises
    ///
    /// | when | what becomes of the step |
    /// |---|---|
    /// | the process dies before `run`, or in it | the next attempt runs it: **at least once**, so pass [`downstream_key`](Self::downstream_key) on |
    /// | … after `run`, before its result is recorded | the same: it runs a second time |
    /// | … after that | every later attempt gets the result; `run` is not called |
    /// | this attempt lost its key to another one, because its process stood still | no step of it begins, and none replaces a result: [`StepErrorKind::ClaimLost`](crate::StepErrorKind::ClaimLost) |
    /// | … while it runs a step | the other attempt waits for it as long as it shows signs of life, and gets its result |
    /// | `run` returns an error | the error is yours, and nothing is recorded: the name may be taken again |
    /// | `run` panics, or the step is dropped, by a timeout around it | it may have run: it runs again |
    /// | the client leaves | handler and step go on |
    /// | the store is away | tried again for as long as the registry lets a store take, then an error; when `run` has run already, [`StepErrorKind::NotRecorded`](crate::StepErrorKind::NotRecorded), and the recording is tried on while this process lives: a later attempt waits for it |
    /// | the handler ends with a status that is not recorded | its steps stay: the next request with this key gets their results. Return an error from `run` where that must not be |
    /// | … and that request asks for something else | [`StepErrorKind::OtherRequest`](crate::StepErrorKind::OtherRequest), 422 |
    /// | … or comes with other credentials, and no caller is named | [`StepErrorKind::OtherCredentials`](crate::StepErrorKind::OtherCredentials), 422 |
    /// | another handler has taken a step of this name under the same claim: one forwards the request to the other | [`StepErrorKind::OfAnotherHandler`](crate::StepErrorKind::OfAnotherHandler); give each its own name |
    /// | the code was changed, and reads the result as another type | [`StepErrorKind::WrongType`](crate::StepErrorKind::WrongType); it never runs again silently |
    /// | `after_crash = "reject"` | after a crash there is no further attempt for which a step could be recorded; one that may have run is not run again: [`StepErrorKind::OutcomeUnknown`](crate::StepErrorKind::OutcomeUnknown) |
    /// | the handler takes a `Tx`, or runs under the claim of one that does | [`StepErrorKind::InTransaction`](crate::StepErrorKind::InTransaction): a rollback would undo what the step wrote and leave its result |
    /// | without a key, or without a store by `on_store_error = "run"` | it runs, and nothing is recorded |
    /// | an operator purges the key | its steps stay until they are purged by their own keys |
    ///
    /// Two steps of one execution need two names; the second one of a name is an error, also without a key. Steps of
    /// different names may run at once. Each costs its store two writes and a renewal of the handler's claim.
    ///
    /// # Errors
    ///
    /// What `run` returned, or a [`StepError`] where the step could not be taken, recorded or read.
    ///
    /// # Cancel safety
    ///
    /// A step that is dropped counts as one that died: it may have run, and runs again.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use idempotent_runtime::{Idempotency, idempotent};
    /// # async fn reserve(_: &str, _: String) -> Result<u64, StatusCode> { Ok(7) }
    /// # async fn charge(_: u64, _: String) -> Result<String, StatusCode> { Ok("ch_1".to_owned()) }
    ///
    /// #[idempotent(scope = "orders", cache = [201])]
    /// async fn create_order(idempotency: Idempotency, order: String) -> Result<(StatusCode, String), StatusCode> {
    ///     let reservation = idempotency
    ///         .step("reserve-stock", || reserve(&order, idempotency.downstream_key("warehouse")))
    ///         .await?;
    ///     // When the process dies in here, the next attempt reserves nothing, and charges under the same key.
    ///     let charge = idempotency
    ///         .step("charge", || charge(reservation, idempotency.downstream_key("card-network")))
    ///         .await?;
    ///     Ok((StatusCode::CREATED, charge))
    /// }
    /// ```
    pub async fn step<T, E, F, R>(&self, name: &str, run: F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<StepError>,
        F: FnOnce() -> R,
        R: Future<Output = Result<T, E>>,
    {
        let execution = self.execution();
        let fails = |kind| {
            let error = StepError::new(name, kind, execution.steps().map(Steps::registry_and_scope));
            if matches!(error.rejection(), Rejection::StepFailed) {
                // Without its source, which may quote the result.
                telemetry::step_failed(error.step(), error.kind());
            }
            error
        };
        let taken = execution.step_names.take(name).map_err(fails)?;
        if execution.is_in_transaction() {
            return Err(fails(StepErrorKind::InTransaction).into());
        }
        let running = match execution.steps() {
            None => None,
            Some(steps) => match steps.begin(name, execution.owner_of_steps()).await.map_err(fails)? {
                Begun::Running(running) => Some(running),
                Begun::Recorded(json) => {
                    let result =
                        serde_json::from_slice(&json).map_err(|error| fails(StepErrorKind::WrongType(error)))?;
                    taken.for_good();
                    return Ok(result);
                }
            },
        };
        let result = match run().await {
            Ok(result) => result,
            Err(error) => {
                if let Some(running) = running {
                    running.release().await;
                }
                return Err(error);
            }
        };
        let json = serde_json::to_vec(&result).map_err(|error| fails(StepErrorKind::Unserialisable(error)))?;
        let result = serde_json::from_slice(&json).map_err(|error| fails(StepErrorKind::Unserialisable(error)))?;
        taken.for_good();
        if let Some(running) = running {
            running.record(name, json).await.map_err(fails)?;
        }
        Ok(result)
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("attempt", &self.attempt()).finish_non_exhaustive()
    }
}

impl<S: Sync> FromRequestParts<S> for Idempotency {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Execution::of(&mut parts.extensions)))
    }
}
