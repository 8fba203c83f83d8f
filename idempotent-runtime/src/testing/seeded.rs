//! Claims of a pretended other process.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use tokio::sync::Mutex;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::handle::PolicyHandle;
use crate::policy::{Policy, Settings};
use crate::record::headers::Length;
use crate::record::now_in_millis;
use crate::record::{Record, RecordedBody, headers};
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::{Store, StoreAdmin};
use crate::store::error::StoreError;

/// A time that is longer than any test lets its clock run.
const LONG: Duration = Duration::from_secs(24 * 365 * 60 * 60);

/// The default policy, which decides which headers are not recorded.
static DEFAULTS: Policy = Policy::of_handler("", "seeded", || "seeded", &[], Settings::DEFAULT);

/// The seeds of one store. A clone shares them.
#[derive(Clone, Default)]
pub(super) struct Seeds(Arc<Mutex<HashMap<RecordKey, Seed>>>);

struct Seed {
    token: Token,
    /// The first request with the key, as its policy claims it. The other process counts as having the same request and
    /// policy.
    first: Option<ClaimRequest>,
    /// The way in which the claim ended before that request came.
    ending: Option<Ending>,
}

enum Ending {
    Completed(Record),
    Crashed,
}

impl Seeds {
    /// Enters the claim that is seeded under the key, with the fingerprint of this first request.
    pub(super) async fn plant<S: StoreAdmin>(
        &self,
        store: &S,
        key: &RecordKey,
        request: ClaimRequest,
    ) -> Result<(), StoreError> {
        let mut seeds = self.0.lock().await;
        let Some(seed) = seeds.get_mut(key).filter(|seed| seed.first.is_none()) else { return Ok(()) };
        // Its process renews the claim, so it has no end.
        claim(store, key, request.with_token(seed.token).with_lease(LONG).with_ttl(LONG)).await?;
        seed.first = Some(request);
        match seed.ending.take() {
            None => Ok(()),
            Some(ending) => end(store, key, seed, request, ending).await,
        }
    }
}

async fn claim<S: StoreAdmin>(store: &S, key: &RecordKey, request: ClaimRequest) -> Result<(), StoreError> {
    let claimed = store.claim(key, request).await?;
    if claimed == (Claim::Acquired { attempt: 1 }) {
        return Ok(());
    }
    Err(StoreError::unavailable(format!("the seeded key was taken by another claim: {claimed:?}")))
}

async fn end<S: StoreAdmin>(
    store: &S,
    key: &RecordKey,
    seed: &mut Seed,
    first: ClaimRequest,
    ending: Ending,
) -> Result<(), StoreError> {
    let held = match ending {
        Ending::Completed(record) => {
            let record = Record { fingerprint: first.fingerprint, ..record };
            store.complete(key, seed.token, record, first.ttl).await?
        }
        Ending::Crashed => crash(store, key, seed, first).await?,
    };
    match held {
        Held::Yes => Ok(()),
        Held::No => Err(StoreError::unavailable("the seeded claim is gone: it was purged, resolved or taken over")),
    }
}

/// Ends the lease. The claim gets the ttl of the policy from now on, as if its process had renewed it until now. The
/// caller has the seeds locked, so no request can claim the key in between.
async fn crash<S: StoreAdmin>(
    store: &S,
    key: &RecordKey,
    seed: &mut Seed,
    first: ClaimRequest,
) -> Result<Held, StoreError> {
    if store.release(key, seed.token).await? == Held::No {
        return Ok(Held::No);
    }
    seed.token = Token::unique();
    claim(store, key, first.with_token(seed.token)).await?;
    store.renew(key, seed.token, Duration::ZERO).await
}

/// A claim of a pretended other process whose handler runs, made by
/// [`FaultyStore::seed_in_flight`](super::FaultyStore::seed_in_flight). It holds its key until you end it.
///
/// It counts as a claim for the same request as the first request with the key. That request gets `in_flight`, and a
/// different request gets `key_reused`.
///
/// # Examples
///
/// The example shows a process that died in the handler, and the next attempt:
///
/// ```
/// use axum::body::{Body, to_bytes};
/// use axum::http::Request;
/// use axum::{Router, routing::post};
/// use idempotent_runtime::{Idempotency, RecordKey, idempotent, testing};
/// use tower::ServiceExt;
///
/// #[idempotent(scope = "charges")]
/// async fn create_charge(idempotency: Idempotency) -> String {
///     format!("attempt {}", idempotency.attempt())
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let registry = testing::registry();
/// let app: Router = Router::new().route("/charges", post(create_charge)).layer(registry.layer());
/// registry.seed_in_flight(RecordKey::new("charges", None, "k")).await.crash().await.unwrap();
///
/// let request = Request::post("/charges").header("idempotency-key", "k").body(Body::empty()).unwrap();
/// let response = app.oneshot(request).await.unwrap();
/// assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "attempt 2");
/// # });
/// ```
#[must_use = "its methods end the claim; dropped, it holds the key for ever"]
pub struct SeededClaim<S> {
    store: Arc<S>,
    seeds: Seeds,
    key: RecordKey,
}

impl<S: StoreAdmin> SeededClaim<S> {
    pub(super) async fn new(store: Arc<S>, seeds: Seeds, key: RecordKey) -> Self {
        let seed = Seed { token: Token::unique(), first: None, ending: None };
        seeds.0.lock().await.insert(key.clone(), seed);
        Self { store, seeds, key }
    }

    /// Makes the other process answer with a status that is not recorded, so the key is free.
    ///
    /// # Errors
    ///
    /// Fails if the store fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the claim may have ended, or it holds the key for ever.
    pub async fn release(self) -> Result<(), StoreError> {
        if let Some(seed) = self.seeds.0.lock().await.remove(&self.key) {
            let _held = self.store.release(&self.key, seed.token).await?;
        }
        Ok(())
    }

    /// Makes the other process answer with `response`, and record it as policies do by default, for example without
    /// `set-cookie`. Retries get the record for the `ttl` of their policy.
    ///
    /// # Errors
    ///
    /// Fails if the store fails, or if the claim is gone, for example because it was purged. Then nothing is recorded.
    ///
    /// # Panics
    ///
    /// Panics if the response's body breaks off.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the claim may have ended, or it holds the key for ever.
    pub async fn complete(self, response: impl IntoResponse) -> Result<(), StoreError> {
        let (parts, body) = response.into_response().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("the body of a recorded response is whole");
        let headers = headers::recorded(&parts.headers, &PolicyHandle::Handler(&DEFAULTS), Length::OfBody);
        let (body, fingerprint) = (RecordedBody::Whole(body), Fingerprint::from_bytes([0; 32]));
        self.end(Ending::Completed(Record::new(parts.status, headers, body, fingerprint, now_in_millis()))).await
    }

    /// Makes the other process die and its lease expire. The policy decides what happens next: its `ttl` begins now.
    ///
    /// # Errors
    ///
    /// Fails if the store fails, or if the claim is gone.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the claim may have ended, or it holds the key for ever.
    pub async fn crash(self) -> Result<(), StoreError> {
        self.end(Ending::Crashed).await
    }

    async fn end(self, ending: Ending) -> Result<(), StoreError> {
        let mut seeds = self.seeds.0.lock().await;
        let Some(seed) = seeds.get_mut(&self.key) else { return Ok(()) };
        if let Some(first) = seed.first {
            return end(&*self.store, &self.key, seed, first, ending).await;
        }
        seed.ending = Some(ending);
        Ok(())
    }
}

impl<S> fmt::Debug for SeededClaim<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeededClaim").field("key", &self.key).finish_non_exhaustive()
    }
}
