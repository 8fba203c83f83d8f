//! A store that fails or stalls on command.

mod calls;

use std::fmt;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::key::RecordKey;
use crate::store::contract::StoreAdmin;
use crate::store::error::StoreError;
use crate::store::memory::store::MemoryStore;
use crate::sync::{Mutex, lock};
use crate::testing::fault::{Fault, Faults};
use crate::testing::seeded::{SeededClaim, Seeds};
use crate::transaction::transactions::TransactionPhase;

/// A store whose calls fail on command. A clone shares the store and its faults.
///
/// Under `tokio::time::pause` a call that hangs takes no real time: the clock advances to the registry's limit by
/// itself, if the inner store uses that clock, as `MemoryStore` does. The transaction of a `Tx` bypasses these faults.
/// [`fail_transactions`](Self::fail_transactions) makes it fail.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::testing::{Fault, FaultyStore};
///
/// let store = FaultyStore::new();
/// store.on_claim(Fault::Unreachable);
/// // Requests are rejected with 503 from here on.
/// store.on_claim(Fault::None);
/// ```
pub struct FaultyStore<S = MemoryStore> {
    store: Arc<S>,
    faults: Arc<Mutex<Faults>>,
    late: Arc<Semaphore>,
    seeds: Seeds,
}

impl FaultyStore {
    /// Creates a store in memory, without faults.
    pub fn new() -> Self {
        Self::around(MemoryStore::new())
    }
}

impl Default for FaultyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: StoreAdmin> FaultyStore<S> {
    /// Wraps this store, without faults.
    pub fn around(store: S) -> Self {
        Self {
            store: Arc::new(store),
            faults: Arc::default(),
            late: Arc::new(Semaphore::new(0)),
            seeds: Seeds::default(),
        }
    }

    /// Returns the inner store.
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// Claims `key` like another process whose handler runs. Requests with the key are rejected, or wait, until you end
    /// the claim.
    ///
    /// The key is the one that the store gets: `key.digested()` under a registry with `digest_keys`. A handler with a
    /// `Tx` claims in its database's transaction and does not see this claim.
    ///
    /// # Panics
    ///
    /// Panics if the key already has an entry, or the inner store fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing is seeded.
    pub async fn seed_in_flight(&self, key: RecordKey) -> SeededClaim<S> {
        let existing = self.store.get(&key).await.expect("the inner store can be asked");
        assert!(
            existing.is_none(),
            "a claim cannot be seeded under {}, which has an entry: {existing:?}",
            key.as_str()
        );
        SeededClaim::new(Arc::clone(&self.store), self.seeds.clone(), key).await
    }

    /// Sets the fault of claims from now on. A handler with a [`Tx`](crate::Tx) claims in its transaction: see
    /// [`fail_transactions`](Self::fail_transactions).
    pub fn on_claim(&self, fault: Fault) {
        self.with(|faults| faults.claim = fault);
    }

    /// Sets the fault of renewals from now on.
    pub fn on_renew(&self, fault: Fault) {
        self.with(|faults| faults.renew = fault);
    }

    /// Sets the fault of completions from now on.
    pub fn on_complete(&self, fault: Fault) {
        self.with(|faults| faults.complete = fault);
    }

    /// Sets the fault of releases from now on.
    pub fn on_release(&self, fault: Fault) {
        self.with(|faults| faults.release = fault);
    }

    /// Sets the fault of an operator's resolutions from now on.
    pub fn on_resolve(&self, fault: Fault) {
        self.with(|faults| faults.resolve = fault);
    }

    /// Sets the fault of reads of one entry from now on: reads by operators, and by requests that wait for another one.
    pub fn on_get(&self, fault: Fault) {
        self.with(|faults| faults.get = fault);
    }

    /// Sets the fault of listings from now on, both of all entries and of claims alone.
    pub fn on_list(&self, fault: Fault) {
        self.with(|faults| faults.list = fault);
    }

    /// Sets the fault of purges from now on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use idempotent_runtime::RecordKey;
    /// use idempotent_runtime::store::StoreAdmin;
    /// use idempotent_runtime::testing::{Fault, FaultyStore};
    ///
    /// let (store, key) = (FaultyStore::new(), RecordKey::new("charges", None, "k"));
    /// store.on_purge(Fault::Unreachable);
    /// assert!(store.purge(&key).await.is_err());
    /// # }
    /// ```
    pub fn on_purge(&self, fault: Fault) {
        self.with(|faults| faults.purge = fault);
    }

    /// Makes transactions of handlers that take a [`Tx`](crate::Tx) fail in this phase from now on. With `None` they
    /// succeed again.
    ///
    /// The client gets 503 `store_unavailable`, and nothing of the request is kept. The inner store must have transactions.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use idempotent_runtime::Registry;
    /// use idempotent_runtime::store::SqliteStore;
    /// use idempotent_runtime::testing::{FaultyStore, TransactionPhase};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let store = FaultyStore::around(SqliteStore::open(folder.path().join("app.db")).await?);
    /// let registry = Registry::new(store.clone());
    ///
    /// store.fail_transactions(Some(TransactionPhase::Commit));
    /// // A handler under `registry.layer()` runs, nothing of it is kept, and its client gets 503.
    /// store.fail_transactions(None);
    /// // A retry with the same key runs the handler again.
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "sqlite"))]
    /// # fn main() {}
    /// ```
    pub fn fail_transactions(&self, at: Option<TransactionPhase>) {
        self.with(|faults| faults.transactions = at);
    }

    /// Lets one late call through.
    pub fn let_through(&self) {
        self.late.add_permits(1);
    }

    /// Returns the number of claims that were tried.
    pub fn claims(&self) -> usize {
        self.with(|faults| faults.claims)
    }

    /// Returns the number of look-ups of an entry, for example by a request that waits for another one.
    pub fn looks(&self) -> usize {
        self.with(|faults| faults.looks)
    }

    /// Returns the number of completions that were tried.
    pub fn completions(&self) -> usize {
        self.with(|faults| faults.completions)
    }

    /// Returns the number of tries to end a claim, by a release or by a renewal with a lease of zero.
    pub fn ends(&self) -> usize {
        self.with(|faults| faults.ends)
    }

    async fn through<T, C, F>(&self, fault: Fault, call: C) -> Result<T, StoreError>
    where
        C: FnOnce(Arc<S>) -> F,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
        T: Send + 'static,
    {
        if let Some(error) = fault.error() {
            return Err(error);
        }
        let call = call(Arc::clone(&self.store));
        match fault {
            Fault::Hangs => pending().await,
            Fault::AnswerIsLost => {
                let _ = call.await;
                pending().await
            }
            Fault::AnswerIsLate => {
                let answer = call.await;
                self.late.acquire().await.expect("the semaphore stays open").forget();
                answer
            }
            Fault::ArrivesLate => {
                let late = Arc::clone(&self.late);
                let arriving = tokio::spawn(async move {
                    late.acquire().await.expect("the semaphore stays open").forget();
                    call.await
                });
                arriving.await.expect("the call does not panic")
            }
            _ => call.await,
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Faults) -> T) -> T {
        ask(&mut lock(&self.faults))
    }
}

impl<S> Clone for FaultyStore<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            faults: Arc::clone(&self.faults),
            late: Arc::clone(&self.late),
            seeds: self.seeds.clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("store", &self.store).field("faults", &self.faults).finish_non_exhaustive()
    }
}
