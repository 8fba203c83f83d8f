//! The store behind PgBouncer in transaction mode, where the statements that one client prepares meet the names of others.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{AfterCrash, Claim, EntryState, Held, PostgresStore, Store, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::pgbouncer::PgBouncer;
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::stores::{claim_request, migrated, record};
use idempotent_tests::{Logs, Runs, Server};
use sqlx::Postgres;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};

#[idempotent(scope = "pooled-waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "pooled-in-transaction")]
async fn in_transaction(idempotency: Idempotency, mut tx: Tx<Postgres>) -> Result<String, String> {
    // What an application has to do behind such a pooler.
    let insert = sqlx::query("INSERT INTO effects (key) VALUES ($1)").persistent(false).bind(idempotency.key());
    insert.execute(&mut *tx).await.map(|_| "done".to_owned()).map_err(|error| error.to_string())
}

async fn behind_pooler() -> (&'static PostgresServer, Database, PgBouncer) {
    let server = PostgresServer::shared().await;
    (server, server.database().await, PgBouncer::in_front_of(server, 2))
}

/// A look-up ran another client's `DELETE`, and a live record was gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_clients_run_only_their_own_statements() {
    let (_, database, pooler) = behind_pooler().await;
    let pools = join_all((0..4).map(|_| database.pool_through(&pooler, 3))).await;
    migrated(&pools[0]).await;
    let clients = pools.iter().map(|pool| PostgresStore::new(pool.clone())).enumerate();
    let one = async |(client, store): (usize, PostgresStore)| {
        for number in 0..15 {
            let key = RecordKey::new("charges", None, &format!("{client}-{number}"));
            // Each client asks in an order of its own, and so gives other names to its statements.
            for step in 0..4 {
                match (step + client) % 4 {
                    0 => assert_eq!(store.get(&key).await.expect("it looks"), None),
                    1 => assert!(!store.purge(&RecordKey::new("charges", None, "none")).await.expect("it purges")),
                    2 => drop(store.list(None, 3).await.expect("it lists")),
                    _ => drop(store.unknown_outcomes().await.expect("it counts")),
                }
            }
            let claim = claim_request().with_after_crash(AfterCrash::Reject);
            assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
            assert_eq!(store.renew(&key, claim.token, claim.lease).await.expect("it renews"), Held::Yes);
            assert_eq!(
                store.complete(&key, claim.token, record("paid"), claim.ttl).await.expect("it records"),
                Held::Yes
            );
        }
    };
    join_all(clients.map(one)).await;
    let direct = PostgresStore::new(database.pool(1).await);
    let all = direct.list(None, 100).await.expect("it lists");
    assert_eq!((all.entries.len(), all.damaged.len()), (60, 0));
    assert!(all.entries.iter().all(|entry| matches!(entry.state, EntryState::Completed { .. })));
}

#[tokio::test]
async fn pooler_is_recognised_and_told_once() {
    let (_, database, pooler) = behind_pooler().await;
    let logs = Logs::collect();
    let direct = migrated(&database.pool(2).await).await;
    let key = RecordKey::new("charges", None, "k");
    assert_eq!(direct.get(&key).await.expect("it looks"), None);
    assert_eq!(logs.of_level("WARN"), Vec::<String>::new());
    let store = PostgresStore::new(database.pool_through(&pooler, 2).await);
    for _ in 0..3 {
        assert_eq!(store.get(&key).await.expect("it looks"), None);
    }
    let warnings = logs.of_level("WARN");
    assert!(warnings.len() == 1 && warnings[0].contains("behind a pooler"), "{warnings:?}");
}

/// Leads each connection to another one of the poolers than the one before.
fn balancer(poolers: &[PgBouncer]) -> TempDir {
    let entrance = TempDir::with_prefix("balancer").expect("a temporary folder");
    let listener = UnixListener::bind(entrance.path().join(".s.PGSQL.5432")).expect("a socket");
    let sockets: Vec<_> = poolers.iter().map(|pooler| pooler.folder().join(".s.PGSQL.5432")).collect();
    tokio::spawn(async move {
        for socket in sockets.into_iter().cycle() {
            let Ok((mut client, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let mut pooler = UnixStream::connect(socket).await.expect("the pooler listens");
                let _ = tokio::io::copy_bidirectional(&mut client, &mut pooler).await;
            });
        }
    });
    entrance
}

/// Each connection has a process of the server that stays the same, as without a pooler.
#[tokio::test]
async fn poolers_behind_a_balancer_are_recognised() {
    let (server, database, first) = behind_pooler().await;
    let poolers = [first, PgBouncer::in_front_of(server, 2), PgBouncer::in_front_of(server, 2)];
    for pooler in &poolers {
        migrated(&database.pool_through(pooler, 1).await).await;
    }
    let entrance = balancer(&poolers);
    let pool = PgPoolOptions::new().connect_lazy_with(database.options_of("tester").socket(entrance.path()));
    let (logs, store) = (Logs::collect(), PostgresStore::new(pool));
    assert_eq!(store.get(&RecordKey::new("charges", None, "k")).await.expect("it looks"), None);
    assert!(logs.of_level("WARN").iter().any(|line| line.contains("behind a pooler")), "{}", logs.text());
}

#[tokio::test]
async fn pooled_store_that_is_told_so_looks_for_nothing() {
    let (_, database, pooler) = behind_pooler().await;
    migrated(&database.pool(1).await).await;
    let logs = Logs::collect();
    let store = PostgresStore::builder(database.pool_through(&pooler, 2).await).pooled().build();
    let (key, claim) = (RecordKey::new("charges", None, "k"), claim_request().with_after_crash(AfterCrash::Reject));
    assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.release(&key, claim.token).await.expect("it releases"), Held::Yes);
    assert_eq!(logs.of_level("WARN"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_waiter_elsewhere_gets_the_response_soon() {
    let (_, database, pooler) = behind_pooler().await;
    let (here, there) = (database.pool_through(&pooler, 3).await, database.pool_through(&pooler, 3).await);
    let runs = Runs::held();
    let serve = async |store: PostgresStore| {
        let app = Router::new().route("/waits", post(waits)).with_state(runs.clone());
        Server::start(app.layer(Registry::new(store).layer())).await
    };
    let (first, second) = (serve(migrated(&here).await).await, serve(PostgresStore::new(there)).await);
    let (running, (waited, took)) = tokio::join!(first.post_with_key("/waits", "k"), async {
        runs.until_started(1).await;
        let waiting = async { (second.post_with_key("/waits", "k").await, Instant::now()) };
        let ending = async {
            // Long enough that a waiter who looks less and less often would be slow.
            tokio::time::sleep(Duration::from_secs(1)).await;
            runs.let_finish(1);
            Instant::now()
        };
        let ((waited, at), ended) = tokio::join!(waiting, ending);
        (waited, at.duration_since(ended))
    });
    assert_eq!((running.text(), waited.text(), waited.is_replay()), ("charge 1", "charge 1", true));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_transactions_take_effect_once_and_replay() {
    let (_, database, pooler) = behind_pooler().await;
    let pool = database.pool_through(&pooler, 4).await;
    let store = migrated(&pool).await;
    sqlx::raw_sql("CREATE TABLE effects (key text NOT NULL)").execute(&pool).await.expect("the table is made");
    let app = Router::new().route("/charges", post(in_transaction)).layer(Registry::new(store).layer());
    let server = Server::start(app).await;
    for round in 0..2 {
        for number in 0..20 {
            let answer = server.post_with_key("/charges", &format!("k{number}")).await;
            assert_eq!((answer.text(), answer.is_replay()), ("done", round == 1));
        }
    }
    let direct = database.pool(1).await;
    let effects: (i64, i64) = sqlx::query_as("SELECT count(*), count(DISTINCT key) FROM effects")
        .fetch_one(&direct)
        .await
        .expect("the table is read");
    assert_eq!(effects, (20, 20));
}
