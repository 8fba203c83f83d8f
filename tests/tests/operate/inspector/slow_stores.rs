//! A store that does not answer, or that stops answering.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{Cursor, MemoryStore, Page, PostgresStore, StoreAdmin, StoreError};
use idempotent_runtime::{RecordKey, Registry};
use idempotent_tests::{Wrapped, Wrapper};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use tower::ServiceExt as _;

use crate::inspector::shop::{Shop, leave_behind};

#[tokio::test]
async fn a_store_that_is_away_is_told() {
    // No server listens on port 1.
    let options = PgPoolOptions::new().acquire_timeout(Duration::from_millis(50));
    let away = options.connect_lazy("postgres://nobody@127.0.0.1:1/nothing").expect("a well-formed URL");
    let registry = Registry::new(PostgresStore::new(away));
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let answer = shop.get("/api/summary").await;
    assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"));
    let page = shop.get("").await;
    assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(page.text().contains("the store is unavailable"), "{}", page.text());
}

/// Lists a limited number of entries, one at a time, and then does not answer any more.
struct Tiring {
    store: MemoryStore,
    lists: usize,
}

impl Wrapper for Tiring {
    fn inner(&self) -> &impl StoreAdmin {
        &self.store
    }

    async fn list(&self, cursor: Option<Cursor>, _: usize) -> Result<Page, StoreError> {
        let (listed, place) = match &cursor {
            None => (0, None),
            Some(cursor) => {
                let (listed, place) = cursor.as_str().split_once(' ').expect("its own cursor");
                (listed.parse().expect("its own cursor"), Some(Cursor::new(place)))
            }
        };
        if listed == self.lists {
            std::future::pending::<()>().await;
        }
        let mut page = self.store.list(place, 1).await?;
        page.next = page.next.map(|next| Cursor::new(format!("{} {}", listed + 1, next.as_str())));
        Ok(page)
    }
}

async fn summary_of_a_store_that_lists(lists: usize) -> (StatusCode, Value) {
    let store = MemoryStore::new();
    for number in 0..3 {
        leave_behind(&store, &RecordKey::new("payouts", None, &number.to_string())).await;
    }
    let registry = Registry::new(Wrapped(Tiring { store, lists }));
    let app: Router = Router::new().nest("/ops", Inspector::new(&registry).trust_everybody().router());
    let request = Request::get("/ops/api/summary").body(Body::empty()).expect("the parts are valid");
    let response = app.oneshot(request).await.expect("a router answers");
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body is there");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test(start_paused = true)]
async fn what_a_store_lists_in_time_is_told_as_a_part() {
    let (status, part) = summary_of_a_store_that_lists(2).await;
    assert_eq!((status, &part["scanned"], &part["complete"]), (StatusCode::OK, &2.into(), &false.into()), "{part}");
    let (status, whole) = summary_of_a_store_that_lists(3).await;
    assert_eq!((status, &whole["scanned"], &whole["complete"]), (StatusCode::OK, &3.into(), &true.into()), "{whole}");
    let (status, nothing) = summary_of_a_store_that_lists(0).await;
    assert_eq!((status, &nothing["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"store_unavailable".into()));
    assert!(nothing["detail"].as_str().is_some_and(|detail| detail.contains("10s")), "{nothing}");
}

/// A purge that took effect must not be reported as failed: the operator would purge again, and a retry in between
/// would run once more.
#[tokio::test]
async fn purge_answers_although_the_store_lists_nothing() {
    let store = MemoryStore::new();
    leave_behind(&store, &RecordKey::new("payouts", None, "k")).await;
    let registry = Registry::new(Wrapped(Tiring { store: store.clone(), lists: 0 }));
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    let entry = [("scope", "payouts"), ("key", "k")];
    let found = shop.form("", &[&entry[..], &[("action", "look_up")]].concat()).await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.text());
    let confirm =
        shop.form("/api/look-up", &entry).await.json()["confirm"].as_str().expect("it may be purged").to_owned();
    let purge = [&entry[..], &[("confirm", confirm.as_str()), ("action", "purge")]].concat();
    let purged = shop.form("", &purge).await;
    assert_eq!(purged.status, StatusCode::OK, "{}", purged.text());
    assert!(purged.text().contains("<h2>Purged</h2>"), "{}", purged.text());
    assert_eq!(store.get(&RecordKey::new("payouts", None, "k")).await.expect("memory answers"), None);
}

/// Its listing is empty and never ends, as if it contained only names of other programs.
struct Fruitless(MemoryStore);

impl Wrapper for Fruitless {
    fn inner(&self) -> &impl StoreAdmin {
        &self.0
    }

    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        self.0.claims(cursor, limit).await
    }

    async fn list(&self, _: Option<Cursor>, _: usize) -> Result<Page, StoreError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut nothing = Page::default();
        nothing.next = Some(Cursor::new("further on"));
        Ok(nothing)
    }
}

#[tokio::test]
async fn an_overview_of_all_claims_does_not_wait_for_records() {
    let store = MemoryStore::new();
    leave_behind(&store, &RecordKey::new("charges", None, "k")).await;
    let registry = Registry::new(Wrapped(Fruitless(store)));
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let began = std::time::Instant::now();
    let summary = shop.json("/api/summary").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((&summary["complete"], &summary["all_claims"]), (&false.into(), &true.into()), "{summary}");
    assert_eq!(summary["counts"]["past_lease"], 1, "{summary}");
}
