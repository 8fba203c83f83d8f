//! Families of faults, to which `--only` limits a run.

use clap::ValueEnum;

use crate::run::StoreKind;

/// Keys whose requests cause one kind of trouble, and the faults that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Handlers that block their thread for longer than a lease, beside handlers that only wait.
    BlockedThreads,
    /// One current-thread runtime for each core. One of them blocks or ends.
    SeveralRuntimes,
    /// The disk of SQLite is full for a while.
    FullDisk,
    /// A ttl that is not longer than the lease, and a store that is away for longer than both.
    ShortTtl,
    /// Transactions that end while their handler runs, because of the database or a dropped nested `begin`.
    EndedTransactions,
    /// Plain and `Tx` handlers of one scope, as in a rolling deploy.
    MixedScope,
    /// The same key with other credentials.
    RotatedCredentials,
    /// The same key, forwarded to another path.
    ForwardedRequests,
}

impl Family {
    /// Whether the family is possible with this store.
    pub fn fits(self, store: StoreKind) -> bool {
        match self {
            // Connections belong to the runtime that opened them. Only SQLite has none, because it uses its own
            // threads.
            Self::SeveralRuntimes | Self::FullDisk => store == StoreKind::Sqlite,
            Self::EndedTransactions | Self::MixedScope => matches!(store, StoreKind::Sqlite | StoreKind::Postgres),
            Self::BlockedThreads | Self::ShortTtl | Self::RotatedCredentials | Self::ForwardedRequests => {
                store != StoreKind::Memory
            }
        }
    }

    /// All families that are possible with this store.
    pub fn all(store: StoreKind) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|family| family.fits(store)).collect()
    }
}
