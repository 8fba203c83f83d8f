//! Leases are renewed in a separate file, which claims, lookups and deletions read.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, EntryState, Held, SqliteStore, Store as _, StoreAdmin, StoreError, Token,
};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::sqlite::{SqliteFile, acquire, claim_request, record, record_key};
use idempotent_tests::{Runs, Server, eventually};
use sqlx::{Executor as _, Sqlite};

pub(super) const LONG: Duration = Duration::from_mins(1);

pub(super) const TTL: Duration = Duration::from_hours(1);

pub(super) fn brief(millis: u64) -> ClaimRequest {
    claim_request().with_lease(Duration::from_millis(millis))
}

pub(super) async fn open(file: &SqliteFile) -> SqliteStore {
    SqliteStore::open(file.path()).await.expect("the store opens")
}

pub(super) async fn renewed_leases(file: &SqliteFile) -> i64 {
    file.number_with_leases("SELECT count(*) FROM leases.idempotency_leases").await
}

pub(super) async fn leases_connection(file: &SqliteFile) -> sqlx::SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file.leases());
    sqlx::ConnectOptions::connect(&options).await.expect("the file opens")
}

#[tokio::test]
async fn renewed_lease_counts_for_every_process() {
    let file = SqliteFile::new();
    let (holder, other) = (open(&file).await, open(&file).await);
    let (key, request) = (record_key("k"), brief(50).with_after_crash(AfterCrash::Reject));
    holder.claim(&key, request).await.unwrap();
    let mut lock = file.connect().await;
    lock.execute("BEGIN IMMEDIATE").await.unwrap();
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes, "no lock of the database matters");
    file.first_leases_over(0).await;

    let retry = request.with_token(Token::unique());
    assert!(matches!(other.claim(&key, retry).await.unwrap(), Claim::InFlight { .. }));
    assert!(other.unknown_outcomes().await.unwrap().is_empty());
    for entry in [other.get(&key).await.unwrap().unwrap(), other.list(None, 10).await.unwrap().entries.remove(0)] {
        let EntryState::Claimed { lease: Some(left), .. } = entry.state else { panic!("{entry:?}") };
        assert!(left > LONG / 2, "{left:?}");
    }

    assert_eq!(holder.renew(&key, request.token, Duration::ZERO).await.unwrap(), Held::Yes);
    let entry = other.get(&key).await.unwrap().unwrap();
    assert!(matches!(entry.state, EntryState::Claimed { lease: None, .. }), "{entry:?}");
    assert_eq!(other.unknown_outcomes().await.unwrap().values().sum::<u64>(), 1);
    lock.execute("ROLLBACK").await.unwrap();
    assert!(matches!(other.claim(&key, retry).await.unwrap(), Claim::Lapsed { .. }));
}

/// A renewal and a takeover come at the moment at which the lease ends: exactly one of them succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_and_take_over_exclude_each_other() {
    let file = SqliteFile::new();
    let (holder, other) = (open(&file).await, open(&file).await);
    for round in 0..60 {
        let (key, first, second) = (record_key(&format!("{round}")), brief(0), claim_request());
        holder.claim(&key, first).await.unwrap();
        let (renewed, claimed) = tokio::join!(
            tokio::spawn({
                let (holder, key) = (holder.clone(), key.clone());
                async move {
                    // A moment between the begin of the claim and its end, another one in each round.
                    let moment = Duration::from_micros(50 * round);
                    tokio::task::spawn_blocking(move || std::thread::sleep(moment)).await.unwrap();
                    holder.renew(&key, first.token, LONG).await.unwrap()
                }
            }),
            tokio::spawn({
                let (other, key) = (other.clone(), key.clone());
                async move { other.claim(&key, second).await.unwrap() }
            }),
        );
        let outcome = (renewed.unwrap(), claimed.unwrap());
        let is_one =
            matches!(outcome, (Held::Yes, Claim::InFlight { .. }) | (Held::No, Claim::Acquired { attempt: 2 }));
        assert!(is_one, "round {round}: {outcome:?}");
    }
}

/// A process that takes over can die, or find the disk full, when it has fenced the lease in one file and not yet
/// changed the claim in the other. Then the holder can get its claim again.
#[tokio::test]
async fn failed_take_over_leaves_the_claim_to_its_holder() {
    let file = SqliteFile::new();
    let (holder, other) = (open(&file).await, open(&file).await);
    let (key, first) = (record_key("k"), brief(0));
    holder.claim(&key, first).await.unwrap();
    file.execute(
        "CREATE TRIGGER fails BEFORE UPDATE ON idempotency_records BEGIN SELECT RAISE(ROLLBACK, 'no room'); END",
    )
    .await;
    let failed = other.claim(&key, claim_request()).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    file.execute("DROP TRIGGER fails").await;

    assert_eq!(holder.renew(&key, first.token, LONG).await.unwrap(), Held::No, "the lease is over");
    let again = first.with_lease(LONG);
    assert_eq!(holder.claim(&key, again).await.unwrap(), Claim::Acquired { attempt: 1 }, "no other one has the claim");
    assert!(matches!(other.claim(&key, claim_request()).await.unwrap(), Claim::InFlight { .. }));
    assert_eq!(holder.renew(&key, first.token, LONG).await.unwrap(), Held::Yes);
    assert_eq!(holder.complete(&key, first.token, record("paid"), TTL).await.unwrap(), Held::Yes);
}

#[tokio::test]
async fn token_that_claims_again_begins_a_new_lease() {
    let file = SqliteFile::new();
    let (holder, other) = (open(&file).await, open(&file).await);
    let (key, request) = (record_key("k"), claim_request());
    holder.claim(&key, request).await.unwrap();
    assert_eq!(holder.renew(&key, request.token, Duration::ZERO).await.unwrap(), Held::Yes);
    let taken = claim_request();
    assert_eq!(other.claim(&key, taken).await.unwrap(), Claim::Acquired { attempt: 2 });
    assert_eq!(other.release(&key, taken.token).await.unwrap(), Held::Yes);

    assert_eq!(holder.claim(&key, request).await.unwrap(), Claim::Acquired { attempt: 1 });
    assert!(matches!(other.claim(&key, claim_request()).await.unwrap(), Claim::InFlight { .. }));
    assert_eq!(holder.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);
}

/// The row in the database says again and again that the claim has expired, although its lease is renewed.
#[tokio::test]
async fn renewed_claim_is_kept_and_found_after_its_first_ttl() {
    for delete_expired_every in [Duration::from_millis(5), TTL] {
        let file = SqliteFile::new();
        let store = SqliteStore::builder(file.path()).delete_expired_every(delete_expired_every).open().await.unwrap();
        let claims = ["completed", "released", "purged", "lapsed"].map(|name| {
            (
                record_key(name),
                claim_request().with_lease(Duration::from_millis(300)).with_ttl(Duration::from_millis(600)),
            )
        });
        for (key, request) in &claims {
            store.claim(key, *request).await.unwrap();
        }
        let expired = "SELECT count(*) FROM idempotency_records WHERE claim_ttl = 600 AND attempt = 1 \
                       AND lease_until + 300 < unixepoch('subsec') * 1000";
        let begun = tokio::time::Instant::now();
        let renew = async || {
            for (key, request) in &claims {
                assert_eq!(store.renew(key, request.token, LONG).await.unwrap(), Held::Yes);
            }
            file.number(expired).await
        };
        eventually(renew, |&count| count > 0 || begun.elapsed() > Duration::from_millis(700)).await;

        let [(completed, c), (released, r), (purged, _), (lapsed, l)] = &claims;
        assert_eq!(store.list(None, 10).await.unwrap().entries.len(), 4);
        assert!(matches!(store.claim(completed, claim_request()).await.unwrap(), Claim::InFlight { .. }));
        assert_eq!(store.complete(completed, c.token, record("paid"), TTL).await.unwrap(), Held::Yes);
        assert_eq!(store.release(released, r.token).await.unwrap(), Held::Yes);
        assert!(store.purge(purged).await.unwrap());
        assert_eq!(store.renew(lapsed, l.token, Duration::ZERO).await.unwrap(), Held::Yes);
        assert_eq!(store.claim(lapsed, claim_request()).await.unwrap(), Claim::Acquired { attempt: 2 });
    }
}

#[tokio::test]
async fn leases_of_ended_claims_are_deleted() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).delete_expired_every(Duration::from_millis(5)).open().await.unwrap();
    let (done, running) = (record_key("done"), record_key("running"));
    let (token, running_token) = (acquire(&store, &done).await, acquire(&store, &running).await);
    // Long enough for a busy machine: a renewal that waits for a sixth of the lease goes to the database instead. The lease
    // of the running claim expires first.
    for (key, token) in [(&running, running_token), (&done, token)] {
        assert_eq!(store.renew(key, token, Duration::from_millis(600)).await.unwrap(), Held::Yes);
    }
    assert_eq!(renewed_leases(&file).await, 2);
    assert_eq!(store.complete(&done, token, record("paid"), TTL).await.unwrap(), Held::Yes);

    eventually(async || renewed_leases(&file).await, |&count| count == 1).await;

    assert_eq!(store.renew(&running, running_token, LONG).await.unwrap(), Held::Yes);
    let other = store.claim(&running, claim_request()).await.unwrap();
    assert!(matches!(other, Claim::InFlight { .. }), "{other:?}");
}

#[idempotent(scope = "taken-over", cache = [200])]
async fn in_transaction(_: Tx<Sqlite>, State(runs): State<Runs>) -> StatusCode {
    runs.run().await;
    StatusCode::OK
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_that_takes_over_ends_the_lease_at_once() {
    let file = SqliteFile::new();
    let (store, runs) = (open(&file).await, Runs::held());
    let router = Router::new().route("/charges", post(in_transaction)).with_state(runs.clone());
    let server = Server::start(router.layer(Registry::new(open(&file).await).layer())).await;
    runs.let_finish(1);
    assert_eq!(server.post_with_key("/charges", "k").await.status, StatusCode::OK);
    let key = store.list(None, 1).await.unwrap().entries.remove(0).key;
    // The claim that a paused process would leave.
    let token = Token::unique();
    let claimed = format!(
        "UPDATE idempotency_records SET state = 'claimed', token = '{:032x}', lease_id = 1, lease_until = 0, status = NULL, \
         headers = NULL, body = NULL, recorded_at = NULL",
        token.as_u128()
    );
    file.execute(&claimed).await;

    let (retry, ()) = tokio::join!(server.post_with_key("/charges", "k"), async {
        runs.until_started(2).await;
        assert_eq!(store.renew(&key, token, LONG).await.unwrap(), Held::No, "another handler runs");
        runs.let_finish(1);
    });

    assert_eq!((retry.status, retry.is_replay()), (StatusCode::OK, false));
    let entry = store.get(&key).await.unwrap().unwrap();
    assert!(matches!(entry.state, EntryState::Completed { .. }), "{entry:?}");
    assert_eq!(file.number("SELECT attempt FROM idempotency_records").await, 2);
}

/// A process with another clock can fence a lease before its end. The token of the claim can then begin a new lease.
#[tokio::test]
async fn lease_fenced_before_its_end_is_begun_anew_by_its_token() {
    let file = SqliteFile::new();
    let store = open(&file).await;
    let (key, request) = (record_key("k"), claim_request());
    store.claim(&key, request).await.unwrap();
    assert_eq!(store.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);
    leases_connection(&file).await.execute("UPDATE idempotency_leases SET is_over = 1").await.unwrap();

    assert_eq!(store.renew(&key, request.token, LONG).await.unwrap(), Held::No);
    assert_eq!(store.claim(&key, request).await.unwrap(), Claim::Acquired { attempt: 1 });
    assert_eq!(store.renew(&key, request.token, LONG).await.unwrap(), Held::Yes);
    let other = store.claim(&record_key("other"), claim_request()).await.unwrap();
    assert_eq!(other, Claim::Acquired { attempt: 1 }, "the writer goes on");
}
