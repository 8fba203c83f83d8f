//! Opens the store that a URL names, and does not create one.

use std::path::Path;
use std::time::Duration;

use idempotent_runtime::RecordKey;
use idempotent_runtime::operate::{EntryView, Scan};
use idempotent_runtime::store::{
    Cursor, DamagedEntry, Page, PostgresStore, RedisStore, Resolution, Resolved, SqliteStore, StoreAdmin, StoreError,
    Token,
};
use sqlx::Connection as _;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::address::Address;
use crate::arguments::{Entry, StoreOptions};
use crate::failure::Failure;

/// The time that connecting to a server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open store and its address.
pub(crate) struct Opened {
    address: String,
    kind: Kind,
}

enum Kind {
    Sqlite(SqliteStore),
    Redis(RedisStore),
    Postgres(PostgresStore),
}

/// Calls the same method on any kind of store.
macro_rules! on {
    ($opened:expr, $store:ident => $call:expr) => {
        match &$opened.kind {
            Kind::Sqlite($store) => $call.await,
            Kind::Redis($store) => $call.await,
            Kind::Postgres($store) => $call.await,
        }
    };
}

impl Opened {
    pub(crate) async fn open(options: &StoreOptions) -> Result<Self, Failure> {
        let address: &Address = &options.url.as_ref().ok_or(Failure::NoStore)?.parse()?;
        check(options, address)?;
        let opening = async {
            Ok::<_, Failure>(match address {
                Address::Sqlite(path) => Kind::Sqlite(sqlite(path).await?),
                Address::Redis(url) => Kind::Redis(redis(url, address, options).await?),
                Address::Postgres(url) => Kind::Postgres(postgres(url, address, options).await?),
            })
        };
        let silent = || Failure::Silent { address: address.to_string(), seconds: PATIENCE.as_secs() };
        let kind = tokio::time::timeout(PATIENCE, opening).await.map_err(|_| silent())??;
        Ok(Self { address: address.to_string(), kind })
    }

    /// Reads the whole store, and keeps at most `keep` entries of each state.
    pub(crate) async fn scan(&self, scope: Option<String>, keep: usize) -> Result<Scan, Failure> {
        self.scanned(Scan::new(usize::MAX, keep).in_scope(scope)).await
    }

    /// Reads only the claims, if the store has an index of them.
    pub(crate) async fn scan_of_claims(&self, scope: Option<String>, keep: usize) -> Result<Scan, Failure> {
        self.scanned(Scan::new(usize::MAX, keep).in_scope(scope).of_claims()).await
    }

    async fn scanned(&self, mut scan: Scan) -> Result<Scan, Failure> {
        while let Some((cursor, limit)) = scan.next_claims() {
            let page = on!(self, store => store.claims(cursor, limit)).map_err(|error| self.failed(error))?;
            scan.add_claims(page, |_| None);
        }
        while let Some((cursor, limit)) = scan.next() {
            scan.add(self.list(cursor, limit).await?, |_| None);
        }
        Ok(scan)
    }

    pub(crate) async fn look_up(&self, entry: &Entry) -> Result<EntryView, Failure> {
        match entry {
            Entry::Key(key) => self.get(key).await?.ok_or(Failure::NothingThere),
            Entry::Id(id) => self.find(id).await,
        }
    }

    pub(crate) async fn get(&self, key: &RecordKey) -> Result<Option<EntryView>, Failure> {
        match on!(self, store => store.get(key)) {
            Ok(entry) => Ok(entry.map(|entry| EntryView::new(entry, None))),
            Err(StoreError::Damaged(reason)) => {
                Ok(Some(EntryView::from_damaged(DamagedEntry::new(reason).with_key(key.clone()))))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(crate) async fn purge(&self, key: &RecordKey) -> Result<bool, Failure> {
        on!(self, store => store.purge(key)).map_err(|error| self.failed(error))
    }

    pub(crate) async fn resolve(
        &self,
        key: &RecordKey,
        token: Token,
        resolution: Resolution,
    ) -> Result<Resolved, Failure> {
        on!(self, store => store.resolve(key, token, resolution)).map_err(|error| self.failed(error))
    }

    /// Returns the address without every part that may be a password.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    async fn find(&self, id: &str) -> Result<EntryView, Failure> {
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::Id(id.to_owned()));
        }
        let mut cursor = None;
        while let Some(mut page) = on!(self, store => store.claims(cursor, PAGE)).map_err(|error| self.failed(error))? {
            cursor = page.next.take();
            if let Some(found) = in_page(page, id) {
                return Ok(found);
            }
            if cursor.is_none() {
                break;
            }
        }
        cursor = None;
        loop {
            let mut page = self.list(cursor, PAGE).await?;
            let next = page.next.take();
            if let Some(found) = in_page(page, id) {
                return Ok(found);
            }
            cursor = Some(next.ok_or_else(|| Failure::NoSuchId(id.to_owned()))?);
        }
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, Failure> {
        on!(self, store => store.list(cursor, limit)).map_err(|error| self.failed(error))
    }

    fn failed(&self, source: StoreError) -> Failure {
        Failure::Store { address: self.address.clone(), source }
    }
}

/// The number of entries that are requested at once.
const PAGE: usize = 10_000;

fn in_page(page: Page, id: &str) -> Option<EntryView> {
    let entries = page.entries.into_iter().map(|entry| EntryView::new(entry, None));
    let mut views = entries.chain(page.damaged.into_iter().map(EntryView::from_damaged));
    views.find(|view| view.id().as_deref() == Some(id))
}

/// Rejects options that would be ignored.
fn check(options: &StoreOptions, address: &Address) -> Result<(), Failure> {
    let of_redis = matches!(address, Address::Redis(_));
    let of_postgres = matches!(address, Address::Postgres(_));
    for (option, is_given, fits, of) in [
        ("--cluster", options.cluster, of_redis, "Redis"),
        ("--prefix", options.prefix.is_some(), of_redis, "Redis"),
        ("--schema", options.schema.is_some(), of_postgres, "PostgreSQL"),
    ] {
        if is_given && !fits {
            return Err(Failure::ForAnotherStore { option, of, address: address.to_string() });
        }
    }
    match &options.schema {
        Some(schema) if !(1..=63).contains(&schema.len()) || schema.contains('\0') => {
            Err(Failure::Schema(schema.clone()))
        }
        _ => Ok(()),
    }
}

async fn sqlite(path: &Path) -> Result<SqliteStore, Failure> {
    if !path.exists() {
        return Err(Failure::NoFile(path.to_owned()));
    }
    // The table is checked first, because opening the store would create its tables. A file that cannot be read is
    // passed to the store, which explains the error.
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    if let Ok(mut connection) = SqliteConnection::connect_with(&options).await {
        let table = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'idempotency_records'");
        if let Ok(None) = table.fetch_optional(&mut connection).await {
            return Err(Failure::NoTablesInFile(path.to_owned()));
        }
        let _ = connection.close().await;
    }
    Ok(SqliteStore::open(path).await?)
}

async fn redis(url: &str, address: &Address, options: &StoreOptions) -> Result<RedisStore, Failure> {
    // A single server would show its own keys as if they were all keys of the Cluster.
    match (RedisStore::is_in_cluster(url).await?, options.cluster) {
        (true, false) => return Err(Failure::PartOfCluster(address.to_string())),
        (false, true) => return Err(Failure::NoCluster(address.to_string())),
        _ => {}
    }
    let mut builder = if options.cluster { RedisStore::cluster([url]) } else { RedisStore::builder(url) };
    if let Some(prefix) = &options.prefix {
        builder = builder.prefix(prefix);
    }
    // The application must check whether the server evicts keys.
    Ok(builder.allow_eviction().open().await?)
}

async fn postgres(url: &str, address: &Address, options: &StoreOptions) -> Result<PostgresStore, Failure> {
    let failed = |source| match source {
        sqlx::Error::Configuration(source) => Failure::PostgresUrl { address: address.to_string(), source },
        source => Failure::Postgres { address: address.to_string(), source },
    };
    // The timeout is shorter than `PATIENCE`, so that the error contains the server's message.
    let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(PATIENCE / 2);
    let pool = PostgresStore::connect_pool(url, pool).await.map_err(failed)?;
    let schema = options.schema.as_deref().unwrap_or("idempotency");
    let quoted = format!("\"{}\".records", schema.replace('"', "\"\""));
    let exists = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(quoted).fetch_one(&pool).await;
    if !exists.map_err(failed)? {
        return Err(Failure::NoTables { address: address.to_string(), schema: schema.to_owned() });
    }
    Ok(PostgresStore::builder(pool).schema(schema).build())
}
