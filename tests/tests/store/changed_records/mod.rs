//! An attacker who writes to the store changes one thing of a record after the other. What is sealed is replayed as it was, or
//! rejected; what is not is replayed in whole messages, or rejected. No handler runs again.
//!
//! An entry that is deleted, renamed or expired is gone, and no seal can show that.

use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::StoreAdmin;
use idempotent_runtime::{RecordKey, Registry, RegistryBuilder, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer, sealing_key};

mod in_memory;
mod in_redis;
mod in_sql;

const RECEIPT: &str = "receipt-17";

#[idempotent(scope = "changed-records", max_body = "1KiB")]
async fn charge(State(runs): State<Runs>, body: String) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    runs.run().await;
    (StatusCode::CREATED, [("x-receipt", RECEIPT)], body)
}

/// What the store has: the entries of two keys, and every way to change them.
trait Stored {
    type Change: std::fmt::Debug;

    /// The changes of the entry of this key, which is as its handler left it.
    async fn changes(&self, key: &RecordKey) -> Vec<Self::Change>;

    async fn change(&self, key: &RecordKey, change: &Self::Change);

    async fn restore(&self, key: &RecordKey);
}

/// Which of the registries seals: the one that recorded, and the one that replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealing {
    Both,
    None,
    /// A registry without a key must not send what is sealed as if it were a response.
    Recorder,
    /// What is not sealed is rejected.
    Replayer,
}

const ALL: [Sealing; 4] = [Sealing::Both, Sealing::None, Sealing::Recorder, Sealing::Replayer];

async fn serve(registry: RegistryBuilder, is_sealing: bool, runs: &Runs) -> Server {
    let registry = if is_sealing { registry.seal_with(sealing_key(1)) } else { registry };
    let app = Router::new().route("/charges", post(charge)).with_state(runs.clone());
    Server::start(app.layer(registry.build().layer())).await
}

/// One record with its response, and one without: it was too large.
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
        // Each of them counts where a record is sealed. Elsewhere, a part of them meets every case.
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
                // Without its seal, a record without a response is that of another request.
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

/// Whether its head says of its body what is true, and nothing of the connection.
fn is_whole_message(answer: &Answer) -> bool {
    let lengths: Vec<_> = answer.headers.get_all("content-length").iter().collect();
    let has_body = !matches!(answer.status.as_u16(), 204 | 304);
    let is_length = |value: &http::HeaderValue| value.to_str().ok() == Some(&answer.body.len().to_string());
    !answer.status.is_informational()
        && (!has_body || lengths.len() == 1 && is_length(lengths[0]))
        && ["transfer-encoding", "connection", "set-cookie"].iter().all(|name| !answer.headers.contains_key(*name))
}

/// Each byte of it, changed by one bit.
fn with_each_byte_changed(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len()).map(|index| {
        let mut changed = bytes.to_vec();
        changed[index] ^= 1;
        changed
    })
}

/// What was there before the changes.
#[derive(Default)]
struct Original<T>(Mutex<Option<T>>);

impl<T: Clone> Original<T> {
    fn set(&self, original: T) {
        *self.0.lock().expect("no test panics with it") = Some(original);
    }

    fn get(&self) -> T {
        self.0.lock().expect("no test panics with it").clone().expect("it is set before the first change")
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
