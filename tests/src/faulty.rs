//! A store that fails or stalls on command.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
}

#[derive(Default)]
struct Faults {
    claim: Fault,
    renew: Fault,
    complete: Fault,
    release: Fault,
    completions: usize,
}

/// A [`MemoryStore`] behind a line that can break.
#[derive(Clone)]
pub struct FaultyStore {
    store: MemoryStore,
    faults: Arc<Mutex<Faults>>,
}

impl FaultyStore {
    /// A store without faults.
    pub fn new() -> Self {
        Self { store: MemoryStore::new(), faults: Arc::default() }
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

    /// How often a completion was tried.
    pub fn completions(&self) -> usize {
        self.with(|faults| faults.completions)
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

async fn through<T>(fault: Fault, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
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
    }
}

impl Store for FaultyStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        through(self.with(|faults| faults.claim), self.store.claim(key, request)).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        through(self.with(|faults| faults.renew), self.store.renew(key, token, lease)).await
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.completions += 1;
            faults.complete
        });
        through(fault, self.store.complete(key, token, record, ttl)).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        through(self.with(|faults| faults.release), self.store.release(key, token)).await
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
