//! An attacker who can write to the store changes one part of a record after the other. A sealed record is replayed
//! unchanged or rejected. An unsealed one is replayed as a complete message or rejected. No handler runs again.
//!
//! An entry that is deleted, renamed or expired is gone, and no seal can show that.

use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::StoreAdmin;
use idempotent_runtime::{RecordKey, Registry, RegistryBuilder, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer, lock, sealing_key};

mod in_memory;
mod in_redis;
mod in_sql;

const RECEIPT: &str = "receipt-17";

#[idempotent(scope = "changed-records", max_body = "1KiB")]
async fn charge(State(runs): State<Runs>, body: String) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    runs.run().await;
    (StatusCode::CREATED, [("x-receipt", RECEIPT)], body)
}

/// Access to the stored entries, and the ways to change them.
trait Stored {
    type Change: std::fmt::Debug;

    /// Returns the changes for the entry of this key. Nothing may have changed the entry before.
    async fn changes(&self, key: &RecordKey) -> Vec<Self::Change>;

    async fn change(&self, key: &RecordKey, change: &Self::Change);

    async fn restore(&self, key: &RecordKey);
}

/// Which registries seal: the one that records, and the one that replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealing {
    Both,
    None,
    /// The replaying registry has no key. It must not send sealed content as a response.
    Recorder,
    /// The replaying registry rejects records that are not sealed.
    Replayer,
}

const ALL: [Sealing; 4] = [Sealing::Both, Sealing::None, Sealing::Recorder, Sealing::Replayer];

async fn serve(registry: RegistryBuilder, is_sealing: bool, runs: &Runs) -> Server {
    let registry = if is_sealing { registry.seal_with(sealing_key(1)) } else { registry };
    let app = Router::new().route("/charges", post(charge)).with_state(runs.clone());
    Server::start(app.layer(registry.build().layer())).await
}

/// Changes two records: one with its response, and one whose response was too large. Checks the answers to retries.
async fn changes_do_no_harm<S: StoreAdmin + Clone>(store: S, sealing: Sealing, stored: impl Stored) {
    let runs = Runs::free();
    let is_recorder = matches!(sealing, Sealing::Both | Sealing::Recorder);
    let recorder = serve(Registry::builder(store.clone()), is_recorder, &runs).await;
    let is_replayer = matches!(sealing, Sealing::Both | Sealing::Replayer);
    let replayer = serve(Registry::builder(store), is_replayer, &runs).await;
    let long = "long ".repeat(300);
    for (key, body) in [("whole", "paid"), ("too-long", &long)] {
        let key = format!("{key}-{sealing:?}");
        let send =
            |server: &Server| answer(server.post("/charges").header("idempotency-key", &key).body(body.to_owned()));
        let first = send(&recorder).await;
        assert_eq!((first.status, first.text()), (StatusCode::CREATED, body));
        let retried = send(&recorder).await;
        let executed = runs.started();
        let is_as_before = |answer: &Answer| {
            let content =
                |answer: &Answer| (answer.status, answer.headers.get("x-receipt").cloned(), answer.body.clone());
            answer.is_replay() == retried.is_replay() && content(answer) == content(&retried)
        };
        let key = RecordKey::new("changed-records", None, &key);
        let changes = stored.changes(&key).await;
        assert!(changes.len() > 10, "{changes:?}");
        let mut rejected = 0;
        // A sealed response is checked with every change. Elsewhere, a part of the changes covers every case.
        let step = match sealing {
            Sealing::Both if key.key().starts_with("whole") => 1,
            Sealing::Both => 2,
            Sealing::None => 3,
            Sealing::Recorder | Sealing::Replayer => 11,
        };
        for change in changes.into_iter().step_by(step) {
            stored.change(&key, &change).await;
            let answer = send(&replayer).await;
            assert_eq!(runs.started(), executed, "{change:?} runs the handler again: {answer:?}");
            let code = (!answer.is_replay()).then(|| answer.rejection());
            match sealing {
                Sealing::Both => {
                    assert!(
                        is_as_before(&answer) || code.as_deref() == Some("store_unavailable"),
                        "{change:?}: {answer:?}"
                    );
                }
                // A registry without the key may also take a sealed record for that of another request.
                Sealing::Recorder => assert!(code.is_some(), "{change:?}: {answer:?}"),
                Sealing::Replayer => assert_eq!(code.as_deref(), Some("store_unavailable"), "{change:?}"),
                Sealing::None => assert!(is_whole_message(&answer), "{change:?}: {answer:?}"),
            }
            rejected += usize::from(code.as_deref() == Some("store_unavailable"));
            stored.restore(&key).await;
        }
        assert!(rejected > 0);
        assert_eq!(is_as_before(&send(&replayer).await), matches!(sealing, Sealing::Both | Sealing::None), "restored");
    }
}

/// Returns whether the head describes the body correctly, and has no headers that a replay must not have.
fn is_whole_message(answer: &Answer) -> bool {
    let lengths: Vec<_> = answer.headers.get_all("content-length").iter().collect();
    let has_body = !matches!(answer.status.as_u16(), 204 | 304);
    let is_length = |value: &http::HeaderValue| value.to_str().ok() == Some(&answer.body.len().to_string());
    !answer.status.is_informational()
        && (!has_body || lengths.len() == 1 && is_length(lengths[0]))
        && ["transfer-encoding", "connection", "set-cookie"].iter().all(|name| !answer.headers.contains_key(*name))
}

/// Returns a copy for each byte, in which one bit of that byte is changed.
fn with_each_byte_changed(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len()).map(|index| {
        let mut changed = bytes.to_vec();
        changed[index] ^= 1;
        changed
    })
}

/// The stored entry before the changes.
#[derive(Default)]
struct Original<T>(Mutex<Option<T>>);

impl<T: Clone> Original<T> {
    fn set(&self, original: T) {
        *lock(&self.0) = Some(original);
    }

    fn get(&self) -> T {
        lock(&self.0).clone().expect("it is set before the first change")
    }
}

#[tokio::test]
async fn changed_value_in_redis_is_never_another_response() {
    for sealing in ALL {
        let (store, prefix) = in_redis::store().await;
        changes_do_no_harm(store, sealing, in_redis::Values::of(prefix).await).await;
    }
}

#[tokio::test]
async fn changed_row_in_sqlite_is_never_another_response() {
    let (store, rows) = in_sql::sqlite().await;
    for sealing in ALL {
        changes_do_no_harm(store.clone(), sealing, &rows).await;
    }
}

#[tokio::test]
async fn changed_row_in_postgres_is_never_another_response() {
    let (store, rows) = in_sql::postgres().await;
    for sealing in ALL {
        changes_do_no_harm(store.clone(), sealing, &rows).await;
    }
}

#[tokio::test]
async fn changed_record_in_memory_is_never_another_response() {
    for sealing in ALL {
        let store = in_memory::Changing::default();
        changes_do_no_harm(idempotent_tests::Wrapped(store.clone()), sealing, store).await;
    }
}
