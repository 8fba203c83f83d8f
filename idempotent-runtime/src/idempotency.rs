//! The extractor through which a handler sees its own key and attempt.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, OnceLock};

use axum::extract::FromRequestParts;
use http::Extensions;
use http::request::Parts;
use sha2::{Digest, Sha256};

use crate::completion::Fate;
use crate::store::Token;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::transaction::HandlerTransaction;
use crate::{IdempotencyKey, RecordKey};

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
#[derive(Clone)]
pub struct Idempotency(Arc<Execution>);

impl Idempotency {
    /// The client's key, decoded; `None` when this request runs unguarded because it has none.
    pub fn key(&self) -> Option<&str> {
        self.0.granted().map(|grant| grant.key.as_str())
    }

    /// How many times this key was claimed: 1, and one more for each claim that may have run the handler and left neither
    /// a record nor a word of its end, because its process died or was cut off from the store.
    ///
    /// Once there was such a one, the number only grows, until the key is recorded or its time to live is over: an attempt
    /// that ends with a status that is not recorded does not make the next one the first.
    pub fn attempt(&self) -> u32 {
        self.0.granted().map_or(1, |grant| grant.attempt)
    }

    /// A key to pass on to `api`, another service that this handler calls: 32 hexadecimal digits, derived from scope,
    /// caller and key.
    ///
    /// It is the same on every attempt, so that the other service recognises a repetition, and another one for each
    /// `api`. A request without a key gets a fresh one, since it is an execution of its own.
    pub fn downstream_key(&self, api: &str) -> String {
        let mut digest = Sha256::new();
        match self.0.granted() {
            Some(grant) => digest.update(grant.record_key.as_str()),
            None => digest.update(self.0.unkeyed.get_or_init(Token::unique).as_u128().to_le_bytes()),
        }
        // A record key holds no NUL, so this ends it.
        digest.update([0]);
        digest.update(api);
        let digest: [u8; 32] = digest.finalize().into();
        format!("{:032x}", digest[..16].iter().fold(0_u128, |number, &byte| number << 8 | u128::from(byte)))
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

/// In the extensions of a request whose key a layer has claimed.
#[derive(Clone)]
pub(crate) struct Covering(pub(crate) Arc<Execution>);

/// What one request's extractors, its engine and whoever polls it share.
#[derive(Default)]
pub(crate) struct Execution {
    pub(crate) fate: Fate,
    /// Another run, of a request that the handler forwards, must not share it.
    has_entered: AtomicBool,
    grant: OnceLock<Grant>,
    unkeyed: OnceLock<Token>,
    transaction: OnceLock<Arc<dyn HandlerTransaction>>,
    /// That of the layer around this one.
    covering: Option<Arc<Self>>,
    /// A guard beneath this one, which has the last word on what is recorded, has taken the request.
    is_taken_over: AtomicBool,
}

struct Grant {
    key: IdempotencyKey,
    record_key: RecordKey,
    attempt: u32,
}

impl Execution {
    pub(crate) fn of(extensions: &mut Extensions) -> Arc<Self> {
        match extensions.get::<Arc<Self>>() {
            Some(execution) if !execution.has_entered.load(Ordering::Relaxed) => Arc::clone(execution),
            // One whose handler runs came with a request that this handler forwards.
            _ => {
                let execution = Arc::new(Self::beneath(extensions));
                extensions.insert(Arc::clone(&execution));
                execution
            }
        }
    }

    /// One of its own, which knows the layer around it.
    pub(crate) fn beneath(extensions: &Extensions) -> Self {
        let covering = extensions.get::<Covering>().map(|Covering(execution)| Arc::clone(execution));
        Self { covering, ..Self::default() }
    }

    /// The guard of this execution decides from here on: the layer around it records nothing.
    pub(crate) fn take_over(&self) {
        if let Some(covering) = &self.covering {
            covering.is_taken_over.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_taken_over(&self) -> bool {
        self.is_taken_over.load(Ordering::Relaxed)
    }

    /// Whether a layer around it runs under this very key.
    pub(crate) fn is_covered_by(&self, record_key: &RecordKey) -> bool {
        let granted = self.covering.as_deref().and_then(Self::granted);
        granted.is_some_and(|grant| grant.record_key == *record_key)
    }

    /// What was granted to it, or to the nearest layer around it.
    fn granted(&self) -> Option<&Grant> {
        self.grant.get().or_else(|| self.covering.as_deref()?.granted())
    }

    /// The execution of a request without a key, if anybody may ask for it: a `Tx` does.
    pub(crate) fn of_unkeyed(extensions: &mut Extensions) -> Option<Arc<Self>> {
        let has_transactions = cfg!(any(feature = "postgres", feature = "sqlite"));
        (has_transactions || extensions.get::<Arc<Self>>().is_some()).then(|| Self::of(extensions))
    }

    /// The handler is about to run: what comes now with this request's extensions is another run.
    pub(crate) fn enter(&self) {
        self.has_entered.store(true, Ordering::Relaxed);
    }

    /// Makes this the transaction of the run; false when it has one already.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn join(&self, transaction: Arc<dyn HandlerTransaction>) -> bool {
        self.transaction.set(transaction).is_ok()
    }

    pub(crate) fn transaction(&self) -> Option<Arc<dyn HandlerTransaction>> {
        self.transaction.get().cloned()
    }

    pub(crate) fn grant(&self, key: IdempotencyKey, record_key: RecordKey, attempt: u32) {
        self.enter();
        // A middleware may clone the extensions into a second request before either is granted; the first one stands.
        let _ = self.grant.set(Grant { key, record_key, attempt });
    }
}
