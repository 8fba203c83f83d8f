//! A store that fails or stalls on command.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use idempotent_runtime::store::{
    Claim, ClaimRequest, Cursor, Entry, Held, MemoryStore, Page, Store, StoreError, Token,
};
use idempotent_runtime::{Record, RecordKey};

/// What a call does before it reaches the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    #[default]
    None,
    /// It fails and has no effect.
    Unreachable,
    /// It fails for lack of room.
    Full,
    /// What is stored cannot be read.
    Damaged,
    /// It never answers and has no effect.
    Hangs,
    /// It takes effect and never answers.
    AnswerIsLost,
    /// It takes effect and answers when [`FaultyStore::let_through`] says so.
    AnswerIsLate,
    /// It takes effect when [`FaultyStore::let_through`] says so, even if its caller gave up.
    ArrivesLate,
}

#[derive(Default)]
struct Faults {
    claim: Fault,
    renew: Fault,
    complete: Fault,
    release: Fault,
    claims: usize,
    completions: usize,
    ends: usize,
}

/// A [`MemoryStore`] behind a line that can break.
#[derive(Clone)]
pub struct FaultyStore {
    store: MemoryStore,
    faults: Arc<Mutex<Faults>>,
    late: Arc<Semaphore>,
}

impl FaultyStore {
    /// A store without faults.
    pub fn new() -> Self {
        Self { store: MemoryStore::new(), faults: Arc::default(), late: Arc::new(Semaphore::new(0)) }
    }

    /// The store behind the line.
    pub fn inner(&self) -> &MemoryStore {
        &self.store
    }

    /// What claims do from now on.
    pub fn on_claim(&self, fault: Fault) {
        self.with(|faults| faults.claim = fault);
    }

    /// What renewals do from now on.
    pub fn on_renew(&self, fault: Fault) {
        self.with(|faults| faults.renew = fault);
    }

    /// What completions do from now on.
    pub fn on_complete(&self, fault: Fault) {
        self.with(|faults| faults.complete = fault);
    }

    /// What releases do from now on.
    pub fn on_release(&self, fault: Fault) {
        self.with(|faults| faults.release = fault);
    }

    /// Lets one late call through.
    pub fn let_through(&self) {
        self.late.add_permits(1);
    }

    /// How often a claim was tried.
    pub fn claims(&self) -> usize {
        self.with(|faults| faults.claims)
    }

    /// How often a completion was tried.
    pub fn completions(&self) -> usize {
        self.with(|faults| faults.completions)
    }

    /// How often the end of a claim, a release or a renewal for no time, was tried.
    pub fn ends(&self) -> usize {
        self.with(|faults| faults.ends)
    }

    async fn through<T, C, F>(&self, fault: Fault, call: C) -> Result<T, StoreError>
    where
        C: FnOnce(MemoryStore) -> F,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
        T: Send + 'static,
    {
        let call = call(self.store.clone());
        match fault {
            Fault::None => call.await,
            Fault::Unreachable => Err(StoreError::unavailable("the line is cut")),
            Fault::Full => Err(StoreError::Full),
            Fault::Damaged => Err(StoreError::damaged("not a record")),
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
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Faults) -> T) -> T {
        ask(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for FaultyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for FaultyStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let fault = self.with(|faults| {
            faults.claims += 1;
            faults.claim
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.claim(&key, request).await }).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.ends += usize::from(lease.is_zero());
            faults.renew
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.renew(&key, token, lease).await }).await
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.completions += 1;
            faults.complete
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.complete(&key, token, record, ttl).await }).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.ends += 1;
            faults.release
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.release(&key, token).await }).await
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.store.purge(key).await
    }

    async fn sweep(&self) -> Result<usize, StoreError> {
        self.store.sweep().await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.store.list(cursor, limit).await
    }
}
