//! Values that a registry derives from its secrets, while processes with different secrets share a store.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::{
    ClaimRequest, EntryState, Held, MemoryStore, PostgresStore, SqliteStore, Store as _, StoreAdmin, Token,
};
use idempotent_runtime::{
    Fingerprint, Idempotency, Record, RecordKey, RecordedBody, Registry, RegistryBuilder, Tx, idempotent,
};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Answer, Dump, Fault, FaultyStore, Logs, Runs, Server, answer, eventually, sealing_key, stores};
use sqlx::Postgres;

const KEY: &str = "8e03978e";

/// Answers 402, which is not recorded, to an order of `nothing`.
async fn charge(runs: &Runs, idempotency: &Idempotency, order: &str) -> (StatusCode, String) {
    let reference = idempotency.downstream_key("card-network");
    let run = runs.run().await;
    let status = if order == "nothing" { StatusCode::PAYMENT_REQUIRED } else { StatusCode::CREATED };
    (status, format!("{reference} in run {run}"))
}

#[idempotent(scope = "secret-charges", lease = "500ms")]
async fn create_charge(State(runs): State<Runs>, idempotency: Idempotency, order: String) -> (StatusCode, String) {
    charge(&runs, &idempotency, &order).await
}

#[idempotent(scope = "secret-transfers", after_crash = "reject", lease = "500ms")]
async fn create_transfer(State(runs): State<Runs>, idempotency: Idempotency, order: String) -> (StatusCode, String) {
    charge(&runs, &idempotency, &order).await
}

#[idempotent(scope = "secret-steps", lease = "500ms")]
async fn create_in_steps(
    State(runs): State<Runs>,
    idempotency: Idempotency,
) -> Result<(StatusCode, String), axum::http::Response<axum::body::Body>> {
    let step = async || Ok::<_, axum::http::Response<axum::body::Body>>(runs.run().await);
    let run = idempotency.step("charge", step).await?;
    Ok((StatusCode::CREATED, format!("run {run}")))
}

#[idempotent(scope = "secret-exact-charges")]
async fn create_exactly(
    _: Tx<Postgres>,
    State(runs): State<Runs>,
    idempotency: Idempotency,
    order: String,
) -> (StatusCode, String) {
    charge(&runs, &idempotency, &order).await
}

fn caller(headers: &HeaderMap) -> String {
    headers.get("x-caller").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

#[idempotent(scope = "secret-orders", caller = caller(&headers))]
async fn create_order(headers: HeaderMap, idempotency: Idempotency, order: String) -> String {
    format!("{} for {} of {}", idempotency.downstream_key("warehouse"), caller(&headers), order.len())
}

type Setting = fn(RegistryBuilder) -> RegistryBuilder;

async fn serve(store: impl StoreAdmin, setting: Setting, runs: &Runs) -> Server {
    let app = Router::new()
        .route("/charges", post(create_charge))
        .route("/transfers", post(create_transfer))
        .route("/in-steps", post(create_in_steps))
        .route("/exact-charges", post(create_exactly))
        .route("/orders", post(create_order))
        .with_state(runs.clone());
    Server::start(app.layer(setting(Registry::builder(store)).build().layer())).await
}

async fn send(server: &Server, path: &str, client: &str, order: &'static str) -> Answer {
    answer(server.post(path).header("idempotency-key", KEY).header("x-api-key", client).body(order)).await
}

const PLAIN: Setting = |registry| registry;
const OLD: Setting = |registry| registry.seal_with(sealing_key(1));
const OLD_AND_NEW: Setting = |registry| registry.seal_with([sealing_key(1), sealing_key(2)]);
const NEW_AND_OLD: Setting = |registry| registry.seal_with([sealing_key(2), sealing_key(1)]);
const KNOWN: Setting = |registry| registry.open_with(sealing_key(1));
const AFTER_KNOWN: Setting =
    |registry| OLD(registry).accept_unsealed_until(SystemTime::now() + Duration::from_hours(24));
const DIGESTING: Setting = |registry| registry.digest_with(sealing_key(1));
const ALSO_KNOWN: Setting = |registry| registry.seal_with([sealing_key(1), sealing_key(3)]);
const DIGESTING_TOO: Setting = |registry| OLD(registry).digest_with(sealing_key(3));
const NEW_KNOWN: Setting = |registry| registry.open_with(sealing_key(2));

/// Sends a request to one process and its retries to another one, while the request runs and when it is recorded.
/// Checks that both processes treat them as one request.
async fn is_one_request<S: StoreAdmin>(path: &str, [one, other]: [S; 2], [of_one, of_other]: [Setting; 2]) {
    let runs = Runs::held();
    let (one, other) = (serve(one, of_one, &runs).await, serve(other, of_other, &runs).await);
    let path_of_first = path.to_owned();
    let first = tokio::spawn(async move { send(&one, &path_of_first, "acme", "tea").await });
    runs.until_started(1).await;
    assert_eq!(send(&other, path, "acme", "tea").await.rejection(), "in_flight");
    assert_eq!(send(&other, path, "acme", "ham").await.rejection(), "key_reused");
    assert_eq!(send(&other, path, "globex", "ham").await.rejection(), "other_credentials");
    runs.let_finish(1);
    let first = first.await.expect("the task ends");
    let replay = send(&other, path, "acme", "tea").await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!(replay.text(), first.text());
    assert_eq!(send(&other, path, "acme", "ham").await.rejection(), "key_reused");
    assert_eq!(send(&other, path, "globex", "tea").await.rejection(), "other_credentials");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn each_phase_of_a_rotation_knows_the_requests_of_the_other() {
    for [one, other] in [[OLD, OLD_AND_NEW], [OLD_AND_NEW, NEW_AND_OLD]] {
        for settings in [[one, other], [other, one]] {
            let store = MemoryStore::new();
            is_one_request("/charges", [store.clone(), store], settings).await;
        }
    }
}

#[tokio::test]
async fn each_phase_of_new_secrets_knows_the_requests_of_the_other() {
    for [one, other] in [
        [PLAIN, KNOWN],
        [KNOWN, AFTER_KNOWN],
        [AFTER_KNOWN, OLD],
        [KNOWN, DIGESTING],
        [OLD, ALSO_KNOWN],
        [ALSO_KNOWN, DIGESTING_TOO],
    ] {
        for settings in [[one, other], [other, one]] {
            let store = MemoryStore::new();
            is_one_request("/charges", [store.clone(), store], settings).await;
        }
    }
}

/// Returns two stores of one database, which do not share the memory that clones of a store share.
async fn of_two_processes() -> [PostgresStore; 2] {
    let database = PostgresServer::shared().await.database().await;
    [stores::migrated(&database.pool(3).await).await, stores::migrated(&database.pool(3).await).await]
}

#[tokio::test]
async fn transactions_are_one_request_in_each_phase_of_a_rotation() {
    for settings in [[PLAIN, KNOWN], [OLD_AND_NEW, OLD]] {
        is_one_request("/exact-charges", of_two_processes().await, settings).await;
    }
}

/// A lock contains a few bits of a fingerprint. A process with another secret cannot compare them.
#[tokio::test]
async fn transaction_under_another_secret_is_in_flight() {
    for [one, other] in [[OLD, NEW_AND_OLD], [NEW_AND_OLD, OLD], [PLAIN, OLD], [OLD, PLAIN]] {
        let runs = Runs::held();
        let [own, others] = of_two_processes().await;
        let (one, other) = (serve(own, one, &runs).await, serve(others, other, &runs).await);
        let first = tokio::spawn(async move { send(&one, "/exact-charges", "acme", "tea").await });
        runs.until_started(1).await;
        assert_eq!(send(&other, "/exact-charges", "acme", "tea").await.rejection(), "in_flight");
        runs.let_finish(1);
        assert_eq!(first.await.expect("the task ends").status, StatusCode::CREATED);
        assert_eq!(runs.started(), 1);
    }
}

/// Returns the first 8 digits of the fingerprint of the store's only entry: the id of its secret.
async fn key_id(store: &impl StoreAdmin) -> String {
    let page = store.list(None, 10).await.expect("the store answers");
    let [entry] = &page.entries[..] else { panic!("one entry: {page:?}") };
    entry.fingerprint.to_string()[..8].to_owned()
}

#[tokio::test]
async fn unknown_secret_is_rejected_and_named_and_runs_nothing() {
    for (path, [writes, meets]) in [
        ("/charges", [NEW_AND_OLD, OLD]),
        ("/charges", [OLD, PLAIN]),
        ("/transfers", [NEW_AND_OLD, OLD]),
        ("/transfers", [OLD, NEW_KNOWN]),
    ] {
        let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
        let one = serve(store.clone(), writes, &runs).await;
        let other = serve(store.inner().clone(), meets, &runs).await;
        let first = tokio::spawn(async move { send(&one, path, "acme", "tea").await });
        runs.until_started(1).await;
        let id = key_id(store.inner()).await;
        let is_unavailable = async |client, order| {
            let before = logs.of_level("ERROR").len();
            let answer = send(&other, path, client, order).await;
            assert_eq!(
                (answer.status, answer.rejection().as_str()),
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
            );
            let errors = logs.of_level("ERROR");
            assert!(errors.len() > before, "{errors:?}");
            errors.last().expect("an error").clone()
        };
        for (client, order) in [("acme", "tea"), ("acme", "ham"), ("globex", "tea")] {
            let error = is_unavailable(client, order).await;
            assert!(
                error.contains(&format!("made with the secret {id}, which this registry does not have")),
                "{error}"
            );
        }
        // The lease expires, as if the process had died.
        store.on_renew(Fault::Unreachable);
        let key = RecordKey::new(if path == "/charges" { "secret-charges" } else { "secret-transfers" }, None, KEY);
        eventually(
            async || store.inner().get(&key).await.expect("the store answers").expect("the claim").state,
            |state| matches!(state, EntryState::Claimed { lease: None, .. }),
        )
        .await;
        assert!(is_unavailable("acme", "tea").await.contains(&id));
        runs.let_finish(1);
        assert_eq!(first.await.expect("the task ends").status, StatusCode::CREATED);
        is_unavailable("acme", "tea").await;
        assert_eq!(runs.started(), 1);
    }
}

/// A later release of the library, which computes fingerprints in another way, has claimed and recorded the key.
#[tokio::test]
async fn fingerprint_of_another_algorithm_runs_nothing() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(store.clone(), PLAIN, &runs).await;
    let key = RecordKey::new("secret-charges", None, KEY);
    let fingerprint = Fingerprint::from_bytes(std::array::from_fn(|at| if at == 3 { 2 } else { 0 }));
    let request = ClaimRequest::new(Token::unique(), fingerprint);
    store.claim(&key, request).await.expect("the key is free");
    let is_unavailable =
        async || assert_eq!(send(&server, "/charges", "acme", "tea").await.rejection(), "store_unavailable");
    is_unavailable().await;
    let body = RecordedBody::Whole("run 1".into());
    let record = Record::new(StatusCode::CREATED, Vec::new(), body, fingerprint, SystemTime::now());
    let completed = store.complete(&key, request.token, record, Duration::from_hours(1)).await;
    assert_eq!(completed.expect("the store answers"), Held::Yes);
    is_unavailable().await;
    assert_eq!(runs.started(), 0);
}

/// The claim of a process that died was made with other secrets, or without one. A third process with other secrets
/// replays the record of the retry.
#[tokio::test]
async fn takeover_in_a_rotation_is_replayed_after_it() {
    const NEW: Setting = |registry| registry.seal_with(sealing_key(2));
    for [dies, takes_over, replays] in
        [[OLD_AND_NEW, NEW_AND_OLD, NEW], [KNOWN, AFTER_KNOWN, OLD], [AFTER_KNOWN, KNOWN, AFTER_KNOWN]]
    {
        for (path, scope) in [("/charges", "secret-charges"), ("/in-steps", "secret-steps")] {
            let (runs, store) = (Runs::held(), FaultyStore::new());
            let one = serve(store.clone(), dies, &runs).await;
            let first = tokio::spawn(async move { send(&one, path, "acme", "tea").await });
            runs.until_started(1).await;
            store.on_renew(Fault::Unreachable);
            let key = RecordKey::new(scope, None, KEY);
            let state = async || store.inner().get(&key).await.expect("memory answers").expect("the claim").state;
            eventually(state, |state| matches!(state, EntryState::Claimed { lease: None, .. })).await;
            let runs = Runs::free();
            let other = serve(store.inner().clone(), takes_over, &runs).await;
            let second = eventually(
                async || send(&other, path, "acme", "tea").await,
                |answer| answer.status == StatusCode::CREATED,
            )
            .await;
            let last = serve(store.inner().clone(), replays, &runs).await;
            let replay = send(&last, path, "acme", "tea").await;
            assert!(replay.is_replay(), "{path}: {replay:?}");
            assert_eq!(replay.text(), second.text());
            let entries = store.inner().list(None, 10).await.expect("memory answers").entries;
            let ids: HashSet<_> = entries.iter().map(|entry| entry.fingerprint.to_string()[..8].to_owned()).collect();
            assert_eq!(ids.len(), 1, "{path}: the handler and its step have the same secret");
            first.abort();
        }
    }
}

/// Returns the part of a fingerprint that is compared, and each of its hints.
fn parts(fingerprint: Fingerprint) -> [Vec<u8>; 7] {
    let bytes = fingerprint.as_bytes();
    [4..20, 20..22, 22..24, 24..26, 26..28, 28..30, 30..32].map(|part| bytes[part].to_vec())
}

#[tokio::test]
async fn equal_requests_under_two_keys_have_no_equal_part() {
    for setting in [PLAIN, OLD, |registry| registry.digest_with(sealing_key(3))] {
        let (runs, store) = (Runs::free(), MemoryStore::new());
        let server = serve(store.clone(), setting, &runs).await;
        for key in ["8e03978e", "40ea8a35"] {
            let request = server.post("/charges").header("idempotency-key", key).header("x-api-key", "acme");
            let request = request.header("authorization", "Basic YTpi").body("tea");
            assert_eq!(answer(request).await.status, StatusCode::CREATED);
        }
        let page = store.list(None, 10).await.expect("the store answers");
        let [one, other] = &page.entries[..] else { panic!("two entries: {page:?}") };
        assert_eq!(one.fingerprint.as_bytes()[..4], other.fingerprint.as_bytes()[..4], "one secret");
        for (one, other) in parts(one.fingerprint).iter().zip(&parts(other.fingerprint)) {
            assert_ne!(one, other, "{page:?}");
        }
    }
}

#[tokio::test]
async fn dumps_of_two_deployments_have_nothing_in_common() {
    const STAGING: Setting = |registry| registry.digest_keys().digest_with(sealing_key(4)).seal_with(sealing_key(5));
    const PRODUCTION: Setting = |registry| registry.digest_keys().digest_with(sealing_key(6)).seal_with(sealing_key(7));
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [staging, production] = &folders;
    let recorded = async |folder: &Path, setting: Setting| {
        let store = SqliteStore::open(folder.join("records.db")).await.expect("the store opens");
        let server = serve(store.clone(), setting, &Runs::free()).await;
        let request = server.post("/orders").header("idempotency-key", KEY).header("x-caller", "7").body("tea");
        let reference = answer(request).await.text().split(' ').next().expect("a word").to_owned();
        let page = store.list(None, 10).await.expect("the store answers");
        let [entry] = &page.entries[..] else { panic!("one entry: {page:?}") };
        let caller = entry.key.caller().expect("a caller").into_owned();
        (entry.fingerprint, [entry.key.key().into_owned(), caller, entry.fingerprint.to_string(), reference])
    };
    let (of_staging, shown) = recorded(staging.path(), STAGING).await;
    let (of_production, _) = recorded(production.path(), PRODUCTION).await;
    let [own, others] = folders.each_ref().map(|folder| Dump::of(folder.path()));
    let [key, caller, fingerprint, reference] = shown;
    for text in [&key, &caller, &fingerprint] {
        assert!(own.shows(text) && !others.shows(text), "{text}");
    }
    assert!(!own.shows(&reference), "what other services know is not stored");
    let plain = RecordKey::new("secret-orders", Some("7"), KEY).digested();
    assert!(
        !own.shows(&plain.key()) && !own.shows(&plain.caller().expect("a caller")),
        "anyone can make these digests"
    );
    for (one, other) in parts(of_staging).iter().zip(&parts(of_production)) {
        assert_ne!(one, other);
    }
}

#[tokio::test]
async fn digested_keys_are_found_after_a_rotation() {
    const BEFORE: Setting = |registry| OLD(registry).digest_keys().digest_with(sealing_key(3));
    const DURING: Setting = |registry| NEW_AND_OLD(registry).digest_keys().digest_with(sealing_key(3));
    const AFTER: Setting = |registry| registry.seal_with(sealing_key(2)).digest_keys().digest_with(sealing_key(3));
    for settings in [[BEFORE, DURING], [DURING, AFTER]] {
        let store = MemoryStore::new();
        is_one_request("/charges", [store.clone(), store.clone()], settings).await;
        let key = RecordKey::new("secret-charges", None, KEY);
        assert_eq!(store.get(&key.digested()).await.expect("the store answers"), None);
        let found = store.get(&sealing_key(3).digested(&key)).await.expect("the store answers");
        assert!(found.is_some_and(|entry| matches!(entry.state, EntryState::Completed { .. })));
    }
}

#[tokio::test]
async fn downstream_key_is_of_the_secret_the_client_and_the_request() {
    let reference = async |setting: Setting, client: &str, order: &'static str| {
        let server = serve(MemoryStore::new(), setting, &Runs::free()).await;
        let answer = send(&server, "/charges", client, order).await;
        answer.text().split(' ').next().expect("a word").to_owned()
    };
    let of_secret = |registry: RegistryBuilder| registry.digest_with(sealing_key(3));
    let settings: [Setting; 4] = [
        of_secret,
        |registry| OLD(registry).digest_with(sealing_key(3)),
        |registry| NEW_AND_OLD(registry).digest_with(sealing_key(3)).digest_keys(),
        |registry| NEW_KNOWN(registry).digest_with(sealing_key(3)),
    ];
    let own = reference(of_secret, "acme", "tea").await;
    for setting in settings {
        assert_eq!(reference(setting, "acme", "tea").await, own, "no rotation changes it");
    }
    let others = [
        reference(PLAIN, "acme", "tea").await,
        reference(|registry| registry.digest_with(sealing_key(4)), "acme", "tea").await,
        reference(of_secret, "globex", "tea").await,
        reference(of_secret, "acme", "ham").await,
    ];
    assert!(!others.contains(&own), "{others:?}");
}

#[tokio::test]
async fn released_key_gives_each_request_a_downstream_key_of_its_own() {
    for setting in [PLAIN, |registry| registry.digest_with(sealing_key(3))] {
        let (runs, store) = (Runs::free(), MemoryStore::new());
        let servers = [serve(store.clone(), setting, &runs).await, serve(store, setting, &runs).await];
        let [one, other] = &servers;
        let reference = async |server: &Server, client: &str, order: &'static str| {
            let answer = send(server, "/charges", client, order).await;
            answer.text().split(' ').next().expect("a word").to_owned()
        };
        let declined = reference(one, "acme", "nothing").await;
        assert_eq!(reference(one, "acme", "nothing").await, declined, "another attempt");
        assert_eq!(reference(other, "acme", "nothing").await, declined, "in another process");
        assert_ne!(reference(one, "globex", "nothing").await, declined, "another client");
        assert_ne!(reference(other, "acme", "tea").await, declined, "another request");
        assert_eq!(runs.started(), 5);
    }
}
