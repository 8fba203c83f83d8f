//! The network moves the money, and then the ledger fails. The response is not recorded, so the key is free, and the
//! client uses it for another amount.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use charges::api::{Transactions, router};
use charges::ledger::{Entry, Ledger};
use idempotent_runtime::Registry;
use idempotent_runtime::store::{MemoryStore, SqliteStore};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{Books, order};

const NO_NEW_ENTRY: &str =
    "CREATE TRIGGER fault BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'the ledger fails'); END";
const NO_SETTLEMENT: &str =
    "CREATE TRIGGER fault BEFORE UPDATE OF settled ON entries BEGIN SELECT RAISE(ABORT, 'the ledger fails'); END";

async fn send(router: &Router, path: &str, key: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::post(path)
        .header(header::AUTHORIZATION, "Bearer alice")
        .header(header::CONTENT_TYPE, "application/json")
        .header("idempotency-key", key)
        .body(Body::from(body.to_string()))
        .expect("a request");
    let response = router.clone().oneshot(request).await.expect("a router answers");
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

impl Books {
    async fn run_in_ledger(&self, statement: &'static str) {
        let Ledger::Sqlite(pool) = &self.app.ledger else { panic!("these books are in SQLite") };
        sqlx::query(statement).execute(pool).await.expect("the statement runs");
    }

    /// Sends the request while the ledger fails.
    async fn send_in_vain(&self, fault: &'static str, router: &Router, path: &str, body: &Value) {
        self.run_in_ledger(fault).await;
        assert_eq!(send(router, path, "k", body).await.0, StatusCode::INTERNAL_SERVER_ERROR);
        self.run_in_ledger("DROP TRIGGER fault").await;
    }

    async fn entries(&self) -> Vec<Entry> {
        self.app.ledger.entries().await.expect("the ledger is read")
    }

    /// Each line of the network: its reference, its amount, and how often it was asked for.
    async fn network(&self) -> Vec<(String, i64, i64)> {
        let lines = self.app.network.books().await.expect("the network's books are read");
        lines.into_iter().map(|line| (line.reference, line.amount, line.times_asked)).collect()
    }

    /// A router with the route for charges at least once, and one with the route for exact charges.
    async fn both_routers() -> [(Self, Router); 2] {
        let (books, exact) = (Self::open().await, Self::open().await);
        let store = SqliteStore::open(exact.folder.path().join("ledger.db")).await.expect("the store opens");
        let at_least_once = books.router(&Registry::new(MemoryStore::new()));
        let exact_router = router(exact.app.clone(), Transactions::Sqlite).layer(Registry::new(store).layer());
        [(books, at_least_once), (exact, exact_router)]
    }
}

#[tokio::test]
async fn other_charge_under_a_freed_key_has_its_own_reference() {
    for (books, router) in Books::both_routers().await {
        books.send_in_vain(NO_NEW_ENTRY, &router, "/charges", &json!(order(1999))).await;
        let (status, charge) = send(&router, "/charges", "k", &json!(order(99_999))).await;
        assert_eq!((status, &charge["amount"]), (StatusCode::CREATED, &json!(99_999)));
        let network = books.network().await;
        let [(first, 1999, 1), (second, 99_999, 1)] = &network[..] else { panic!("{network:?}") };
        assert_ne!(first, second);
        let entries = books.entries().await;
        let [entry] = &entries[..] else { panic!("{} entries", entries.len()) };
        assert_eq!((entry.amount, &entry.reference), (99_999, second), "the first charge is not booked as this one");
        let (status, _) = send(&router, "/charges", "k", &json!(order(1999))).await;
        assert_eq!((status, books.network().await), (StatusCode::UNPROCESSABLE_ENTITY, network));
    }
}

#[tokio::test]
async fn same_charge_under_a_freed_key_has_the_same_reference() {
    for (books, router) in Books::both_routers().await {
        books.send_in_vain(NO_NEW_ENTRY, &router, "/charges", &json!(order(1999))).await;
        assert_eq!(send(&router, "/charges", "k", &json!(order(1999))).await.0, StatusCode::CREATED);
        let network = books.network().await;
        let [(reference, 1999, 2)] = &network[..] else { panic!("{network:?}") };
        let entries = books.entries().await;
        let [entry] = &entries[..] else { panic!("{} entries", entries.len()) };
        assert_eq!((entry.amount, &entry.reference), (1999, reference));
    }
}

#[tokio::test]
async fn other_refund_under_a_freed_key_has_its_own_reference() {
    for (books, router) in Books::both_routers().await {
        let (_, charge) = send(&router, "/charges", "charge", &json!(order(5000))).await;
        let refund = |amount: i64| json!({ "charge": charge["id"], "amount": amount });
        books.send_in_vain(NO_SETTLEMENT, &router, "/refunds", &refund(100)).await;
        assert_eq!(send(&router, "/refunds", "k", &refund(4000)).await.0, StatusCode::CREATED);
        let network = books.network().await;
        let [(_, 5000, 1), (first, -100, 1), (second, -4000, 1)] = &network[..] else { panic!("{network:?}") };
        assert_ne!(first, second);
        let entries: Vec<_> = books.entries().await;
        let refunds: Vec<_> =
            entries[1..].iter().map(|entry| (&entry.reference, entry.amount, entry.settled)).collect();
        assert_eq!(refunds, [(first, -100, false), (second, -4000, true)]);
        assert_eq!(entries[0].refundable, 900);
    }
}
