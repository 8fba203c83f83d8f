//! The extractor through which a handler sees its own key, its attempt and its steps.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::observe::telemetry;
use crate::record::protection::Downstream;
use crate::request::context::{Execution, Grant};
use crate::request::coverage::find_sender;
use crate::request::step_place::StepPlace;
use crate::step::error::{StepError, StepErrorKind};
use crate::step::json_loss;
use crate::step::steps::{Begun, Steps};
use std::future::Future;

/// The information that a handler has about the key under which it runs.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::{Idempotency, idempotent};
/// # async fn charge_card(_: u64, _: &str) -> String { "ch_1".to_owned() }
///
/// #[idempotent(scope = "charges")]
/// async fn create_charge(idempotency: Idempotency) -> String {
///     let charge = charge_card(1999, &idempotency.downstream_key("card-network")).await;
///     format!("attempt {} made {charge}", idempotency.attempt())
/// }
/// ```
///
/// A clone of a request, for instance by a batch handler or a hedging middleware, is a separate request. Its handler
/// gets an `Idempotency` with the key, the attempt and the steps of that clone. An `Idempotency` that was extracted
/// from the original request knows nothing about its clones.
///
/// Make `Idempotency` an argument of the handler. A handler that extracts `Idempotency` while it runs must use the
/// `Request` that is its last argument. A copy of `Parts` has no link to the guard. An `Idempotency` from such a copy
/// is the handler's only if the handler's own task extracts it while the handler runs, and if no caller is named or the
/// registry names the same one. Otherwise the `Idempotency` has no key. In the handler's own task, its steps fail and
/// an ERROR is logged. In another task, the library cannot detect the mistake, and the steps are not recorded.
///
/// An extractor before the claim can use `Idempotency` too. A step that such an extractor takes is not recorded. An
/// extractor after the claim has the handler's key, attempt and steps.
///
/// A middleware around a guarded handler gets the handler's key once the handler's guard has claimed it or has
/// answered, on a replay too. Before that, the middleware has the key of the layer around it, or else no key and a
/// random [`downstream_key`](Self::downstream_key). Take the middleware's steps after the handler has answered: a step
/// that the middleware takes while the handler runs is recorded under the handler's claim, and runs again when a retry
/// replays the handler.
///
/// The same holds for a handler that extracts `Idempotency` from its `Request` and then forwards that request to a
/// guarded handler: from then on, both handlers share one `Idempotency`. Let such a handler take `Idempotency` as an
/// argument instead.
///
/// A unit test that calls the handler passes `Idempotency::default()`, which has no key.
#[derive(Clone, Default)]
pub struct Idempotency(Arc<Execution>);

impl Idempotency {
    #[cfg(feature = "testing")]
    #[track_caller]
    pub(crate) fn of_test(key: &str, attempt: u32) -> Self {
        let execution = Execution::default();
        let key = crate::idempotency_key::IdempotencyKey::new(key)
            .unwrap_or_else(|reason| panic!("{key:?} is no key: {reason}"));
        let record_key = crate::key::RecordKey::new("test", None, key.as_str());
        execution.ask_for(key, record_key, Downstream::default());
        execution.set_attempt(attempt);
        Self(Arc::new(execution))
    }

    fn execution(&self) -> &Arc<Execution> {
        self.0.owner()
    }

    /// Returns the grant. If there is no key although a guard may have one, reports the missing key.
    fn granted(&self) -> Option<&Grant> {
        let granted = self.execution().granted();
        if granted.is_none() && self.execution().may_have_lost_its_guard() {
            telemetry::unknown_handler();
        }
        granted
    }

    /// Returns the client's key, decoded. Returns `None` if the request has no key and runs unguarded.
    pub fn key(&self) -> Option<&str> {
        self.granted().map(|grant| grant.key.as_str())
    }

    /// Returns the number of this attempt: 1 for the first claim of the key. If an attempt ends neither with a record
    /// nor with a release, because its process died or lost the connection to the store, the next attempt has a number
    /// that is higher by one.
    ///
    /// From then on each further attempt has a higher number, even after an attempt whose status is not recorded, until
    /// a response is recorded or the claim's ttl expires.
    pub fn attempt(&self) -> u32 {
        self.execution().visible_attempt()
    }

    /// Returns a key for `api`, another service that this handler calls: 32 hexadecimal digits, derived from scope,
    /// caller, key and everything that the fingerprint covers.
    ///
    /// The key is the same on every attempt of one request, so the other service detects a repetition: after a crash,
    /// after a response that was not recorded, in another process, and after a rotation of the sealing keys. The key is
    /// different for each `api`, for each client and for each request. If a response was not recorded, the key is free
    /// again. If a client then sends the key with another request or other credentials, the other service sees a new
    /// operation. With a caller, a client can renew its credentials between attempts; without a caller, the credentials
    /// belong to the request.
    ///
    /// With [`RegistryBuilder::digest_with`](crate::RegistryBuilder::digest_with) the key depends on that secret, so
    /// only this service can compute the key. Without that secret, a person who knows the whole request can compute the
    /// key too; if no caller is named, the credentials are part of the request. In both cases, do not publish the key,
    /// for instance as an address. Compare the answer of the other service, such as the amount, with the handler's own
    /// request.
    ///
    /// A request without a key gets a random key, because each such request is a separate execution. Under an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer), a handler without the attribute gets a key derived from the
    /// layer's. If a guarded handler sends requests without keys to such handlers, each gets a key derived from the
    /// guard's key, and from the method, path and query of its own request. Requests with one target get one key, even
    /// if their bodies differ: if each is a separate operation, send each with its own key.
    pub fn downstream_key(&self, api: &str) -> String {
        // A record key contains no NUL, so NUL marks its end.
        let api = [b"\0", api.as_bytes()].concat();
        let digest = match self.granted() {
            Some(grant) => {
                let path = self.execution().path_under_key();
                let path = path.map(|path| [b"\0", path.as_bytes()].concat()).unwrap_or_default();
                grant.downstream.key(&[grant.record_key.as_str().as_bytes(), &path, &api])
            }
            None => Downstream::default().key(&[&self.execution().unkeyed().as_u128().to_le_bytes(), &api]),
        };
        format!("{:032x}", digest[..16].iter().fold(0_u128, |number, &byte| number << 8 | u128::from(byte)))
    }

    /// Runs `run` once for this key, and records its result. An attempt after a crash gets the recorded result.
    ///
    /// The result is stored as JSON in the handler's store, under [`RecordKey::step`](crate::RecordKey::step). The
    /// store keeps the result as long as the handler's claim, and then for the handler's `ttl`. If the response is
    /// recorded, the result expires shortly before that record. If an attempt after a crash reads the result, the store
    /// keeps it longer. The attempt that produces the result also reads it back from JSON, so all attempts see the same
    /// value. `digest_keys` and `seal_with` apply to the result as to responses. The name is readable, so do not put a
    /// secret into it.
    ///
    /// # What it promises
    ///
    /// | event | the step |
    /// |---|---|
    /// | the process dies before `run`, or in it | the next attempt runs it: **at least once**, so pass [`downstream_key`](Self::downstream_key) on |
    /// | … after `run`, before its result is recorded | the same: it runs a second time |
    /// | … after its result is recorded | every later attempt gets the result; `run` is not called |
    /// | this attempt lost its key to another one, because its process was paused | it begins no step, and none of its steps replaces a result: [`StepErrorKind::ClaimLost`](crate::StepErrorKind::ClaimLost) |
    /// | … while it runs a step | the other attempt waits until the step ends or its lease expires, and gets its result. After two leases it gets [`StepErrorKind::StillRunning`](crate::StepErrorKind::StillRunning), 409 |
    /// | `run` returns an error | you get the error, and nothing is recorded: the name can be used again |
    /// | `run` panics, or the step is dropped, for instance by a timeout around it | it may have run, and it runs again |
    /// | `try_join!` runs steps at once, and one of them fails | the others are dropped: they may have run, and they run again. Use `join!`, which waits for all of them, and then `?` on each result |
    /// | JSON would change the result: `Some(())`, `Some(None)`, a float that is not a number | [`StepErrorKind::Unserialisable`](crate::StepErrorKind::Unserialisable) |
    /// | the process dies right after the response is recorded, under `after_crash = "reject"` or with a `ttl` shorter than two leases | its result may be kept for longer than the response: the first execution after the `ttl` may get it |
    /// | the client disconnects | handler and step continue |
    /// | the store is unreachable | the call is repeated for as long as the registry allows a store to take, then it fails. If `run` has already run, that is [`StepErrorKind::NotRecorded`](crate::StepErrorKind::NotRecorded), and recording is tried again while this process lives: a later attempt waits for it |
    /// | the handler ends with a status that is not recorded | its steps stay: the next request with this key gets their results. To prevent this, return an error from `run` |
    /// | … and the next request is a different one | [`StepErrorKind::OtherRequest`](crate::StepErrorKind::OtherRequest), 422 |
    /// | … or has other credentials, and no caller is named | [`StepErrorKind::OtherCredentials`](crate::StepErrorKind::OtherCredentials), 422 |
    /// | another handler has a step of this name under the same claim, in this attempt or in an earlier one, because one forwards the request to the other | [`StepErrorKind::OfAnotherHandler`](crate::StepErrorKind::OfAnotherHandler): give each step its own name |
    /// | something between the claim and the handler calls the handler twice, such as a batch or a middleware that retries | the same for the second call; a retry of the client gets the results |
    /// | a middleware around the handler takes a step when the handler has answered | it is recorded under the claim of the [`IdempotencyLayer`](crate::IdempotencyLayer) around it; without one, [`StepErrorKind::NoClaim`](crate::StepErrorKind::NoClaim) |
    /// | the code was changed, and reads the result as another type | [`StepErrorKind::WrongType`](crate::StepErrorKind::WrongType); it never runs again silently |
    /// | `after_crash = "reject"` | after a crash there is no further attempt. A step that may have run does not run again: [`StepErrorKind::OutcomeUnknown`](crate::StepErrorKind::OutcomeUnknown) |
    /// | the handler takes a `Tx`, or runs under the claim of a handler that does | [`StepErrorKind::InTransaction`](crate::StepErrorKind::InTransaction): a rollback would undo what the step wrote, and keep its result |
    /// | there is no key, or no store under `on_store_error = "run"` | it runs, and nothing is recorded |
    /// | an operator purges the key | its steps stay until they are purged by their own keys |
    ///
    /// Each step of an execution needs its own name. The second step with a name is an error, also without a key. Steps
    /// with different names can run concurrently. Beneath a layer, a handler without the attribute is known by the
    /// method and the path of its request. Each step costs its store two writes and a renewal of the handler's claim.
    ///
    /// # Errors
    ///
    /// Returns the error of `run`, or a [`StepError`] if the step could not be taken, recorded or read. `E` can be the
    /// handler's own error type: [`StepError`] has an example.
    ///
    /// # Cancel safety
    ///
    /// A dropped step counts as one that crashed: it may have run, and it runs again.
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
        let of_steps = self.0.of_steps();
        let execution = of_steps.as_ref().map_or(self.execution(), |execution| execution);
        let place = execution.place_of_steps();
        let fails = |kind| failed_step(name, kind, execution, &place);
        if let Err(kind) = of_steps {
            return Err(fails(kind).into());
        }
        let taken = execution.run.step_context.names.take(name).map_err(fails)?;
        if execution.is_in_transaction() {
            return Err(fails(StepErrorKind::InTransaction).into());
        }
        let running = match &place {
            StepPlace::Nowhere => None,
            StepPlace::Unknown => {
                telemetry::unknown_handler();
                return Err(fails(StepErrorKind::OfAnotherHandler).into());
            }
            StepPlace::NoClaim => return Err(fails(StepErrorKind::NoClaim).into()),
            StepPlace::Claim(steps, owner) => match steps.begin(name, owner).await.map_err(fails)? {
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
        json_loss::check(&result).map_err(|error| fails(StepErrorKind::Unserialisable(error)))?;
        let json = serde_json::to_vec(&result).map_err(|error| fails(StepErrorKind::Unserialisable(error)))?;
        let result = serde_json::from_slice(&json).map_err(|error| fails(StepErrorKind::Unserialisable(error)))?;
        taken.for_good();
        if let Some(running) = running {
            running.record(name, json).await.map_err(fails)?;
        }
        Ok(result)
    }
}

/// Creates the error of a step, and reports it.
fn failed_step(name: &str, kind: StepErrorKind, execution: &Arc<Execution>, place: &StepPlace<'_>) -> StepError {
    let registry_and_scope = place.steps().map(Steps::registry_and_scope);
    let audience = execution.audience();
    let error = StepError::new(name, kind, registry_and_scope, audience, execution.step_rejections().cloned());
    let scope = error.scope().or_else(|| execution.scope()).unwrap_or_default();
    telemetry::step_failed(scope, error.step(), &error.rejection(), error.kind());
    error
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("attempt", &self.attempt()).finish_non_exhaustive()
    }
}

impl<S: Sync> FromRequestParts<S> for Idempotency {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let execution = Execution::of(&mut parts.extensions);
        find_sender(&execution, &parts.headers);
        execution.compare_callers(parts);
        execution.set_target(&parts.method, &parts.uri);
        Ok(Self(execution))
    }
}
