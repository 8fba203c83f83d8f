//! An operator resolves unknown outcomes: retries get the operator's response, or the handler runs once more.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::post;
use idempotent_runtime::operate::{AUDIT_TARGET, Finding, InvalidFinding, ResolveError};
use idempotent_runtime::store::{Entry, EntryState, Held, MemoryStore, Resolved, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, RegistryBuilder, Tx, idempotent};
use idempotent_tests::{
    Answer, Fault, FaultyStore, Logs, PATIENCE, Runs, Server, answer, eventually, leave_a_claim, sealing_key, stores,
};
use sqlx::Postgres;
use tower_http::catch_panic::CatchPanicLayer;

const HOUR: Duration = Duration::from_hours(1);

/// It panics only in its first run.
#[idempotent(scope = "resolved-transfers", ttl = "7d", after_crash = "reject")]
async fn transfer(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    let run = runs.run().await;
    assert!(run > 1, "the handler was cut off");
    (StatusCode::CREATED, format!("{body} by run {run}"))
}

#[idempotent(scope = "resolved-charges", fingerprint = none, lease = "300ms", after_crash = "reject")]
async fn charge(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "resolved-steps", fingerprint = none, after_crash = "reject")]
async fn in_a_step(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String, StatusCode> {
    let run = idempotency.step("reserve", async || Ok::<_, StatusCode>(crash(runs.run().await))).await?;
    Ok(format!("reserved {run}"))
}

fn crash(run: usize) -> usize {
    panic!("the step was cut off in run {run}");
}

#[idempotent(scope = "resolved-in-transactions", fingerprint = none)]
async fn in_transaction(mut tx: Tx<Postgres>, State(runs): State<Runs>) -> String {
    sqlx::query("INSERT INTO charges (note) VALUES ('paid')").execute(&mut *tx).await.expect("inserted");
    format!("run {}", runs.run().await)
}

/// One process of an application.
struct Process {
    server: Server,
    registry: Registry,
}

impl Process {
    async fn start(registry: RegistryBuilder, runs: &Runs) -> Self {
        let registry = registry.build();
        let app = Router::new()
            .route("/transfers", post(transfer))
            .route("/charges", post(charge))
            .route("/steps", post(in_a_step))
            .route("/transactions", post(in_transaction))
            .with_state(runs.clone())
            .layer(registry.layer())
            .layer(CatchPanicLayer::new());
        Self { server: Server::start(app).await, registry }
    }

    async fn send(&self, path: &str, body: &'static str) -> Answer {
        answer(self.server.post(path).header("idempotency-key", "k").body(body)).await
    }

    async fn resolve(&self, entry: &Entry, finding: &Finding) -> Resolved {
        self.registry.resolve(None, entry, finding).await.expect("the store answers")
    }
}

fn cached(store: impl StoreAdmin) -> RegistryBuilder {
    Registry::builder(store).near_cache(1_000_000, HOUR)
}

async fn look(store: &impl StoreAdmin, key: &RecordKey) -> Entry {
    store.get(key).await.expect("the store answers").expect("the claim is there")
}

fn receipt(id: &'static str) -> Finding {
    let receipt = Response::builder().status(201).header("x-transfer", id).header("content-type", "text/plain");
    Finding::executed(receipt.body(id).expect("a response"), "it is at the bank").by("alice")
}

fn not_executed() -> Finding {
    Finding::not_executed("it is not at the bank").by("bob")
}

fn assert_replays(replay: &Answer, id: &str) {
    assert_eq!((replay.status, replay.text(), replay.is_replay()), (StatusCode::CREATED, id, true));
    assert!(replay.headers["x-transfer"] == id && replay.headers["content-type"] == "text/plain");
}

/// Starts two processes. In one of them, the transfer `k` was cut off.
async fn cut_off(store: &(impl StoreAdmin + Clone), runs: &Runs) -> ([Process; 2], Entry) {
    let processes =
        [Process::start(cached(store.clone()), runs).await, Process::start(cached(store.clone()), runs).await];
    assert_eq!(processes[0].send("/transfers", "tea").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    for process in &processes {
        assert_eq!(process.send("/transfers", "tea").await.rejection(), "outcome_unknown");
    }
    let entry = look(store, &RecordKey::new("resolved-transfers", None, "k")).await;
    assert!(entry.is_unknown_outcome(), "{entry:?}");
    (processes, entry)
}

async fn retries_get_the_response_of_the_operator(store: &(impl StoreAdmin + Clone)) {
    let runs = Runs::free();
    let ([here, elsewhere], entry) = cut_off(store, &runs).await;
    assert_eq!(here.resolve(&entry, &receipt("tr_17")).await, Resolved::Yes);
    for process in [&here, &elsewhere, &here] {
        assert_replays(&process.send("/transfers", "tea").await, "tr_17");
        assert_eq!(process.send("/transfers", "ham").await.rejection(), "key_reused");
    }
    for late in [receipt("tr_18"), not_executed()] {
        assert_eq!(elsewhere.resolve(&entry, &late).await, Resolved::ChangedHands);
    }
    assert_replays(&elsewhere.send("/transfers", "tea").await, "tr_17");
    assert_eq!(runs.started(), 1);
    let record = look(store, &entry.key).await;
    assert!(record.expires_in.is_some_and(|left| left > 6 * 24 * HOUR), "the handler's ttl is 7 days: {record:?}");
    assert!(store.unknown_outcomes().await.expect("the store answers").is_empty());
}

async fn what_was_not_executed_runs_once(store: &(impl StoreAdmin + Clone)) {
    let runs = Runs::free();
    let ([here, elsewhere], entry) = cut_off(store, &runs).await;
    assert_eq!(elsewhere.resolve(&entry, &not_executed()).await, Resolved::Yes);
    assert_eq!(here.resolve(&entry, &receipt("tr_17")).await, Resolved::ChangedHands);
    let first = here.send("/transfers", "ham").await;
    assert_eq!((first.text(), first.is_replay()), ("ham by run 2", false));
    for process in [&here, &elsewhere] {
        let retry = process.send("/transfers", "ham").await;
        assert_eq!((retry.text(), retry.is_replay()), ("ham by run 2", true));
    }
    assert_eq!(here.resolve(&entry, &not_executed()).await, Resolved::ChangedHands, "of the next claim");
    assert_eq!(runs.started(), 2);
}

async fn of_two_operators_one_wins(store: &(impl StoreAdmin + Clone)) {
    let runs = Runs::free();
    let ([here, elsewhere], entry) = cut_off(store, &runs).await;
    let (alices, bobs) = (receipt("alice"), receipt("bob"));
    let won = futures_util::join!(here.resolve(&entry, &alices), elsewhere.resolve(&entry, &bobs));
    let winner = match won {
        (Resolved::Yes, Resolved::ChangedHands) => "alice",
        (Resolved::ChangedHands, Resolved::Yes) => "bob",
        both => panic!("{both:?}"),
    };
    for process in [&here, &elsewhere] {
        assert_replays(&process.send("/transfers", "tea").await, winner);
    }
    assert_eq!(runs.started(), 1);
}

/// The lease has expired when the operator looks, and is renewed before the operator's decision arrives.
async fn a_claim_that_came_back_is_not_touched(store: &(impl StoreAdmin + Clone)) {
    let runs = Runs::held();
    let process = Process::start(cached(store.clone()), &runs).await;
    let running = tokio::spawn(process.server.post("/charges").header("idempotency-key", "k").send());
    runs.until_started(1).await;
    let key = RecordKey::new("resolved-charges", None, "k");
    let lease_of = |entry: &Entry| match entry.state {
        EntryState::Claimed { lease, token, .. } => (lease, token),
        _ => panic!("{entry:?}"),
    };
    let entry = eventually(
        async || {
            let (_, token) = lease_of(&look(store, &key).await);
            assert_eq!(store.renew(&key, token, Duration::ZERO).await.expect("the store answers"), Held::Yes);
            look(store, &key).await
        },
        |entry| lease_of(entry).0.is_none(),
    )
    .await;
    eventually(async || look(store, &key).await, |entry| lease_of(entry).0.is_some()).await;
    for finding in [receipt("tr_17"), not_executed()] {
        assert_eq!(process.resolve(&entry, &finding).await, Resolved::StillRunning);
    }
    runs.let_finish(1);
    assert_eq!(running.await.expect("it is sent").expect("it is answered").status(), StatusCode::OK);
    let retry = process.send("/charges", "").await;
    assert_eq!((retry.text(), retry.is_replay()), ("run 1", true));
}

macro_rules! in_every_store {
    ($($rule:ident),* $(,)?) => { $(mod $rule {
        use super::*;

        #[tokio::test]
        async fn memory() {
            super::$rule(&MemoryStore::new()).await;
        }

        #[tokio::test]
        async fn sqlite() {
            let (store, _folder) = stores::sqlite().await;
            super::$rule(&store).await;
        }

        #[tokio::test]
        async fn postgres() {
            super::$rule(&stores::postgres(8).await).await;
        }

        #[tokio::test]
        async fn redis() {
            super::$rule(&stores::redis().await).await;
        }

        #[tokio::test]
        async fn redis_cluster() {
            super::$rule(&stores::redis_cluster().await).await;
        }
    })* };
}

in_every_store!(
    retries_get_the_response_of_the_operator,
    what_was_not_executed_runs_once,
    of_two_operators_one_wins,
    a_claim_that_came_back_is_not_touched,
);

#[tokio::test]
async fn a_handler_that_comes_back_after_a_resolution_is_lost() {
    let (store, runs) = (FaultyStore::new(), Runs::held());
    let process = Process::start(Registry::builder(store.clone()), &runs).await;
    store.on_renew(Fault::Unreachable);
    let running = tokio::spawn(process.server.post("/charges").header("idempotency-key", "k").send());
    runs.until_started(1).await;
    let key = RecordKey::new("resolved-charges", None, "k");
    let entry = eventually(async || look(&store, &key).await, Entry::is_unknown_outcome).await;
    assert_eq!(process.resolve(&entry, &receipt("tr_17")).await, Resolved::Yes);
    store.on_renew(Fault::None);
    runs.let_finish(1);
    let late = running.await.expect("it is sent").expect("it is answered");
    assert_eq!(late.status(), StatusCode::CONFLICT);
    assert!(late.text().await.expect("a body").contains("claim_lost"));
    assert_replays(&process.send("/charges", "").await, "tr_17");
    assert_eq!(process.registry.drain(PATIENCE).await, 0);
    assert_replays(&process.send("/charges", "").await, "tr_17");
}

#[tokio::test]
async fn a_resolution_is_sealed_as_its_registry_seals() {
    let (store, runs) = (MemoryStore::new(), Runs::free());
    let sealing = |builder: RegistryBuilder| builder.seal_with([sealing_key(1)]).digest_keys();
    let process = Process::start(sealing(Registry::builder(store.clone())), &runs).await;
    assert_eq!(process.send("/transfers", "tea").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let entry = look(&store, &RecordKey::new("resolved-transfers", None, "k").digested()).await;
    assert_eq!(process.resolve(&entry, &receipt("tr_17")).await, Resolved::Yes);
    assert_replays(&process.send("/transfers", "tea").await, "tr_17");
    assert_eq!(process.send("/transfers", "ham").await.rejection(), "key_reused");
    let without_the_key = Process::start(Registry::builder(store).digest_keys(), &runs).await;
    let sealed = without_the_key.send("/transfers", "tea").await;
    assert_eq!(sealed.rejection(), "store_unavailable", "it is not readable without the key");
}

#[tokio::test]
async fn a_step_is_resolved_by_its_own_key() {
    let (store, runs) = (MemoryStore::new(), Runs::free());
    let process = Process::start(Registry::builder(store.clone()), &runs).await;
    assert_eq!(process.send("/steps", "").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let key = RecordKey::new("resolved-steps", None, "k");
    let step = look(&store, &key.step("reserve")).await;
    let result = |body: &'static str| Finding::executed(Response::new(body), "it is reserved");
    for wrong in [receipt("17"), result("not JSON")] {
        let rejected = process.registry.resolve(None, &step, &wrong).await;
        assert!(matches!(rejected, Err(ResolveError::Invalid(InvalidFinding::StepResult))), "{rejected:?}");
    }
    assert_eq!(process.resolve(&step, &result("17")).await, Resolved::Yes);
    assert_eq!(process.send("/steps", "").await.rejection(), "outcome_unknown", "its handler is another key");
    assert_eq!(process.resolve(&look(&store, &key).await, &not_executed()).await, Resolved::Yes);
    assert_eq!(process.send("/steps", "").await.text(), "reserved 17");
    assert_eq!(runs.started(), 1);
}

/// No row shows that the transaction runs: it holds a lock, and its record conflicts with that of the operator.
#[tokio::test]
async fn a_transaction_on_a_resolved_claim_is_rolled_back() {
    let database = idempotent_tests::postgres::PostgresServer::shared().await.database().await;
    let pool = database.pool(8).await;
    sqlx::raw_sql("CREATE TABLE charges (note text)").execute(&pool).await.expect("the table is made");
    let store = stores::migrated(&pool).await;
    let runs = Runs::held();
    let process = Process::start(Registry::builder(store.clone()), &runs).await;
    let (key, _) = leave_a_claim(&store, "resolved-in-transactions", Duration::ZERO).await;
    let running = tokio::spawn(process.server.post("/transactions").header("idempotency-key", "k").send());
    runs.until_started(1).await;
    assert_eq!(process.resolve(&look(&store, &key).await, &receipt("tr_17")).await, Resolved::Yes);
    runs.let_finish(1);
    let late = running.await.expect("it is sent").expect("it is answered");
    assert!(!late.text().await.expect("a body").contains("run 1"));
    let charged: i64 =
        sqlx::query_scalar("SELECT count(*) FROM charges").fetch_one(&pool).await.expect("the server answers");
    assert_eq!(charged, 0);
    assert_replays(&process.send("/transactions", "").await, "tr_17");
}

#[tokio::test]
async fn a_wrong_finding_changes_nothing_and_says_why() {
    let (store, runs) = (MemoryStore::new(), Runs::free());
    let process = Process::start(Registry::builder(store.clone()), &runs).await;
    assert_eq!(process.send("/transfers", "tea").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let entry = look(&store, &RecordKey::new("resolved-transfers", None, "k")).await;
    let of = |response: Response<&'static str>| Finding::executed(response, "it is at the bank");
    let with = |name: &str, value: &str| of(Response::builder().header(name, value).body("").expect("a response"));
    let status = |status: u16| of(Response::builder().status(status).body("").expect("a response"));
    let large = Finding::executed(Response::new(vec![b'x'; 5_000_000]), "it is at the bank");
    for (finding, words) in [
        (status(101), "interim status"),
        (status(999), "from 200 to 599"),
        (with("content-length", "3"), "`content-length` belongs to one connection or answer"),
        (with("connection", "close"), "`connection` belongs to one connection or answer"),
        (with("idempotency-recorded-by", "x"), "belongs to one connection or answer"),
        (with("idempotency-seal", "x"), "belongs to one connection or answer"),
        (with("set-cookie", "session=1"), "`set-cookie` belongs to one client or one moment"),
        (with("date", "today"), "`date` belongs to one client or one moment"),
        (with("idempotent-replayed", "true"), "`idempotent-replayed` belongs"),
        (with("retry-after", "5"), "write a date"),
        (large, "the body has 5000000 bytes, and a recorded body has at most 4194304"),
        (receipt("tr_17").ttl(Duration::from_millis(1)), "the ttl must be at least 1s"),
        (Finding::not_executed("  "), "there is no reason"),
    ] {
        let rejected = process.registry.resolve(None, &entry, &finding).await;
        let Err(ResolveError::Invalid(error)) = rejected else { panic!("{words}: {rejected:?}") };
        assert!(error.to_string().contains(words), "{words} in {error}");
    }
    let elsewhere = process.registry.resolve(Some("elsewhere"), &entry, &not_executed()).await;
    assert!(matches!(elsewhere, Err(ResolveError::UnknownStore(_))), "{elsewhere:?}");
    assert_eq!(look(&store, &entry.key).await, entry, "nothing has changed");

    assert_eq!(process.resolve(&entry, &not_executed()).await, Resolved::Yes);
    assert_eq!(process.send("/transfers", "tea").await.status, StatusCode::CREATED);
    let record = look(&store, &entry.key).await;
    let of_record = process.registry.resolve(None, &record, &receipt("tr_17")).await;
    assert!(matches!(of_record, Err(ResolveError::Invalid(InvalidFinding::IsRecord))), "{of_record:?}");
}

#[tokio::test]
async fn the_audit_has_who_resolved_what_and_why() {
    let logs = Logs::collect();
    let (store, runs) = (FaultyStore::new(), Runs::free());
    let ([process, _], entry) = cut_off(&store, &runs).await;
    store.on_resolve(Fault::Unreachable);
    let failed = process.registry.resolve(None, &entry, &receipt("tr_17")).await;
    assert!(matches!(failed, Err(ResolveError::Store(_))), "{failed:?}");
    store.on_resolve(Fault::None);
    assert!(process.registry.resolve(None, &entry, &Finding::not_executed("")).await.is_err());
    assert_eq!(process.resolve(&entry, &receipt("tr_17")).await, Resolved::Yes);
    assert_eq!(process.resolve(&entry, &not_executed()).await, Resolved::ChangedHands);
    let audit: Vec<String> = logs.of_level("WARN").into_iter().filter(|line| line.contains(AUDIT_TARGET)).collect();
    let outcomes = ["failed", "rejected: invalid_finding", "resolved_as_executed", "changed_hands"];
    assert_eq!(audit.len(), outcomes.len(), "{audit:#?}");
    for (line, outcome) in audit.iter().zip(outcomes) {
        assert!(line.contains(&format!("outcome=\"{outcome}\"")), "{outcome} in {line}");
    }
    for field in [
        "action=\"resolve\"",
        "by=\"alice\"",
        "store=\"default\"",
        "scope=\"resolved-transfers\"",
        "key=\"… (1)\"",
        "state=\"outcome_unknown\"",
        "status=201",
        "reason=\"it is at the bank\"",
    ] {
        assert!(audit[2].contains(field), "{field} in {}", audit[2]);
    }
    assert!(!logs.text().contains("tr_17"), "no response is logged");
}
