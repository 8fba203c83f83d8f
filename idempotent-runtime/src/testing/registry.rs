//! A registry for one test.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use crate::key::RecordKey;
use crate::layer::made::policies_of_layers;
use crate::observe::event::Event;
use crate::policy::Policy;
use crate::policy::registration::written_policies;
use crate::registry::Registry;
use crate::registry::build::RegistryBuilder;
use crate::rejection::problem::CODES;
use crate::store::contract::StoreAdmin;
use crate::store::memory::store::MemoryStore;
use crate::testing::counts::Counts;
use crate::testing::faulty::FaultyStore;
use crate::testing::seeded::SeededClaim;

/// Creates a registry over its own [`MemoryStore`]. Tests with different registries do not affect each other.
///
/// # Examples
///
/// See [the module](super).
pub fn registry() -> TestRegistry {
    TestRegistry::over(MemoryStore::new())
}

/// A [`Registry`] that counts executed, replayed and rejected requests, over a store that fails on command.
///
/// It dereferences to the registry, which has `layer` and `drain`. To get an owned [`Registry`], use `Registry::clone`.
///
/// # Examples
///
/// See [the module](super).
pub struct TestRegistry<S = MemoryStore> {
    registry: Registry,
    store: FaultyStore<S>,
    counts: Counts,
}

impl<S: StoreAdmin> TestRegistry<S> {
    /// Creates a registry over this store.
    pub fn over(store: S) -> Self {
        Self::with_options(store, |builder| builder)
    }

    /// Creates a registry over this store, with options such as other named stores or rendered rejections.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use idempotent_runtime::store::MemoryStore;
    /// use idempotent_runtime::testing::TestRegistry;
    ///
    /// let registry = TestRegistry::with_options(MemoryStore::new(), |builder| {
    ///     builder.store("payments", MemoryStore::new()).store_timeout(Duration::from_millis(100))
    /// });
    /// ```
    pub fn with_options(store: S, options: impl FnOnce(RegistryBuilder) -> RegistryBuilder) -> Self {
        let (store, counts) = (FaultyStore::around(store), Counts::default());
        let registry = options(Registry::builder(store.clone())).observed_by(counts.clone()).build();
        Self { registry, store, counts }
    }

    /// Returns the default store. Use it to inject faults or to look up entries.
    pub fn store(&self) -> &FaultyStore<S> {
        &self.store
    }

    /// Returns how often handlers of this scope were executed, including requests without a key and requests with an
    /// unguarded method. For an [`IdempotencyLayer`](crate::IdempotencyLayer), returns how often the layer let a
    /// request with a key through. A handler beneath it with the same scope and key is not counted again.
    ///
    /// # Panics
    ///
    /// Panics if no handler and no layer of the program has this scope.
    #[track_caller]
    pub fn executions(&self, scope: &str) -> usize {
        self.count(scope, Event::Executed)
    }

    /// Returns the number of requests of this scope that were answered with a recorded response.
    ///
    /// # Panics
    ///
    /// Panics if no handler and no layer of the program has this scope.
    #[track_caller]
    pub fn replays(&self, scope: &str) -> usize {
        self.count(scope, Event::Replayed)
    }

    /// Returns the number of requests of this scope that were rejected with this
    /// [`Rejection::code`](crate::Rejection::code), including responses made from a [`StepError`](crate::StepError) of
    /// a request with a key. The extractor of a second `Tx` knows no scope, so its 500 is not counted.
    ///
    /// # Panics
    ///
    /// Panics if no rejection has this code, or if no handler and no layer of the program has this scope.
    #[track_caller]
    pub fn rejections(&self, scope: &str, code: &str) -> usize {
        let known = CODES.iter().find(|known| **known == code);
        let code = known.unwrap_or_else(|| panic!("no rejection has the code {code:?}; write one of {CODES:?}"));
        self.count(scope, Event::Rejected(code))
    }

    /// Panics on an unknown scope, because its count would be 0, and a test that expects 0 would pass.
    #[track_caller]
    fn count(&self, scope: &str, event: Event) -> usize {
        let mut known: BTreeSet<String> = written_policies().map(|policy| policy.scope().to_owned()).collect();
        known.extend(policies_of_layers().iter().map(|policy| policy.scope().to_owned()));
        known.extend(self.counts.scopes());
        assert!(known.contains(scope), "no handler and no layer has the scope {scope:?}; the scopes are {known:?}");
        self.counts.of(scope, event)
    }

    /// Does the same as [`FaultyStore::seed_in_flight`], but also works if the registry digests its keys.
    ///
    /// # Panics
    ///
    /// Panics if [`FaultyStore::seed_in_flight`] does, or if no handler of the scope sees the claim: each of them takes a
    /// [`Tx`](crate::Tx), or has a store of another name.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing is seeded.
    pub async fn seed_in_flight(&self, key: RecordKey) -> SeededClaim<S> {
        assert_seen(&key.scope());
        self.store.seed_in_flight(self.registry.at_rest().key(&key)).await
    }
}

/// Panics if no handler of the scope asks the default store. A test would pass although its handler runs beside the claim.
fn assert_seen(scope: &str) {
    let asks = |policy: &Policy| policy.database().is_none() && policy.store().is_none();
    let mut handlers = written_policies().filter(|policy| policy.scope() == scope).peekable();
    let is_known = handlers.peek().is_some();
    let of_layers = policies_of_layers();
    let mut layers = of_layers.iter().filter(|policy| policy.scope() == scope);
    assert!(
        !is_known || handlers.any(asks) || layers.any(|policy| asks(policy)),
        "no handler of the scope {scope:?} sees a seeded claim: a handler with a `Tx` claims in its transaction, so let a first request \
         run while the test sends the second; for a handler with `store = …`, seed the claim in the `FaultyStore` of that name"
    );
}

impl<S> Deref for TestRegistry<S> {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl<S> fmt::Debug for TestRegistry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRegistry")
            .field("registry", &self.registry)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
