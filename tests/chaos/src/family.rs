//! The kinds of trouble that a run can be limited to by `--only`.

use clap::ValueEnum;

use crate::run::StoreKind;

/// Keys that ask for one kind of trouble, and the faults that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Handlers that block their thread for longer than a lease, beside handlers that wait.
    BlockedThreads,
    /// A current-thread runtime for each core; one of them blocks or ends.
    SeveralRuntimes,
    /// The disk of SQLite is full for a moment.
    FullDisk,
    /// A ttl that is no longer than the lease, and a store that is away for longer than both.
    ShortTtl,
    /// Transactions that the database or a dropped nested `begin` ends under their handler.
    EndedTransactions,
    /// Plain and `Tx` handlers of one scope, as in a rolling deploy.
    MixedScope,
    /// The same key with other credentials.
    RotatedCredentials,
    /// The same key, forwarded to another path.
    ForwardedRequests,
}

impl Family {
    /// Whether the family exists over this store.
    pub fn fits(self, store: StoreKind) -> bool {
        match self {
            // Connections live on the runtime that opened them: only SQLite has none, since its threads are its own.
            Self::SeveralRuntimes | Self::FullDisk => store == StoreKind::Sqlite,
            Self::EndedTransactions | Self::MixedScope => matches!(store, StoreKind::Sqlite | StoreKind::Postgres),
            Self::BlockedThreads | Self::ShortTtl | Self::RotatedCredentials | Self::ForwardedRequests => {
                store != StoreKind::Memory
            }
        }
    }

    /// All families over this store.
    pub fn all(store: StoreKind) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|family| family.fits(store)).collect()
    }
}
