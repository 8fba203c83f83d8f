//! Tests the API without an SDK: what it requires of a request, and its error messages.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use idempotent_runtime::store::MemoryStore;
use idempotent_tests::{Answer, Server, answer};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use stripe_dialect::{Accounts, App, Authorisation, Books, CardNetwork, Charge, TestCards, registry, router};
use tempfile::TempDir;

const TEA: &str = "Bearer sk_test_tea";
const HAM: &str = "Bearer sk_test_ham";
const PAYMENT: &str = "amount=1999&currency=eur&payment_method=pm_card_visa&confirm=true";

struct Api {
    server: Server,
    books: Books,
    _folder: TempDir,
}

impl Api {
    async fn start() -> Self {
        Self::with(Arc::new(TestCards)).await
    }

    async fn with(network: Arc<dyn CardNetwork>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let books = Books::open(&folder.path().join("books.db")).await.expect("the books open");
        let accounts = Accounts::new(["sk_test_tea", "sk_test_ham"]).expect("test keys");
        let app = App { accounts, books: books.clone(), network };
        let server = Server::start(router(app, &registry(MemoryStore::new()))).await;
        Self { server, books, _folder: folder }
    }

    fn request(&self, credentials: &str, key: &str, form: &str) -> RequestBuilder {
        let request = self.server.post("/v1/payment_intents").header("authorization", credentials);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.header("idempotency-key", key).body(form.to_owned())
    }

    async fn pay(&self, credentials: &str, key: &str, form: &str) -> Answer {
        answer(self.request(credentials, key, form)).await
    }

    async fn payments(&self) -> i64 {
        self.books.count().await.expect("the books can be read")
    }
}

#[track_caller]
fn is_invalid_request(answer: &Answer, status: u16, code: Option<&str>, parameter: Option<&str>) {
    let error = &answer.json()["error"];
    let told = (&error["type"], &error["code"], &error["param"]);
    assert_eq!(told, (&json!("invalid_request_error"), &json!(code), &json!(parameter)), "{answer:?}");
    assert_eq!(answer.status.as_u16(), status, "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
}

#[tokio::test]
async fn a_payment_is_shaped_as_stripes() {
    let api = Api::start().await;
    let form = format!("{PAYMENT}&description=two+cups&metadata%5Border%5D=6735&metadata[table]=7%20%26%208");
    let paid = api.pay(TEA, "k", &form).await;
    let intent = paid.json();
    assert!(intent["id"].as_str().is_some_and(|id| id.starts_with("pi_") && id.len() == 27), "{intent}");
    assert_eq!((paid.status.as_u16(), &intent["object"]), (200, &json!("payment_intent")));
    assert_eq!((&intent["status"], &intent["livemode"]), (&json!("succeeded"), &json!(false)));
    assert_eq!(intent["metadata"], json!({ "order": "6735", "table": "7 & 8" }));
    assert_eq!(intent["description"], "two cups");
    assert_eq!(paid.headers["idempotency-key"], "k");
    assert!(paid.headers["request-id"].as_bytes().starts_with(b"req_"));
}

#[tokio::test]
async fn each_answer_has_a_request_id_of_its_own_replays_too() {
    let api = Api::start().await;
    let (first, again) = (api.pay(TEA, "k", PAYMENT).await, api.pay(TEA, "k", PAYMENT).await);
    assert_eq!((again.is_replay(), &again.body), (true, &first.body));
    assert_ne!(again.headers["request-id"], first.headers["request-id"]);
}

#[tokio::test]
async fn without_confirm_nothing_is_paid() {
    let api = Api::start().await;
    for (form, status) in [
        ("amount=1&currency=eur", "requires_payment_method"),
        ("amount=1&currency=eur&payment_method=pm_card_visa&confirm=false", "requires_confirmation"),
    ] {
        let intent = api.pay(TEA, status, form).await.json();
        assert_eq!((&intent["status"], &intent["amount_received"]), (&json!(status), &json!(0)), "{intent}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named_and_claims_no_key() {
    let api = Api::start().await;
    for (form, code, parameter) in [
        ("currency=eur", Some("parameter_missing"), Some("amount")),
        ("amount=&currency=eur", Some("parameter_missing"), Some("amount")),
        ("amount=1999", Some("parameter_missing"), Some("currency")),
        ("amount=19.99&currency=eur", Some("parameter_invalid_integer"), Some("amount")),
        ("amount=0&currency=eur", Some("parameter_invalid_integer"), Some("amount")),
        ("amount=100000000&currency=eur", Some("parameter_invalid_integer"), Some("amount")),
        ("amount[]=1&currency=eur", None, Some("amount")),
        ("amount=1&currency=euro", None, Some("currency")),
        ("amount=1&currency=eur&confirm=yes", None, Some("confirm")),
        ("amount=1&currency=eur&confirm=true", Some("parameter_missing"), Some("payment_method")),
        ("amount=1&currency=eur&metadata=6735", None, Some("metadata")),
        ("amount=1&currency=eur&metadata[a][b]=c", None, Some("metadata")),
        ("amount=1&currency=eur&colour=red", Some("parameter_unknown"), Some("colour")),
        ("amount=1&currency=eur&metadata[order=1", None, None),
        ("amount=1&currency=eur&confirm=true&payment_method=pm_none", Some("resource_missing"), Some("payment_method")),
    ] {
        is_invalid_request(&api.pay(TEA, "k", form).await, 400, code, parameter);
    }
    assert_eq!(api.payments().await, 0);
    assert!(!api.pay(TEA, "k", PAYMENT).await.is_replay(), "the key is still free");
}

#[tokio::test]
async fn a_body_that_is_no_form_is_rejected() {
    let api = Api::start().await;
    let request = api.server.post("/v1/payment_intents").header("authorization", TEA);
    let rejected = answer(request.header("content-type", "application/json").body(r#"{"amount":1999}"#)).await;
    is_invalid_request(&rejected, 400, None, None);
    assert!(rejected.text().contains("application/x-www-form-urlencoded"));
}

#[tokio::test]
async fn declines_say_why_and_are_final() {
    let api = Api::start().await;
    for (card, decline_code) in [
        ("pm_card_chargeDeclined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "insufficient_funds"),
    ] {
        let form = PAYMENT.replace("pm_card_visa", card);
        let declined = api.pay(TEA, card, &form).await;
        let error = &declined.json()["error"];
        assert_eq!((declined.status.as_u16(), &error["type"]), (402, &json!("card_error")), "{error}");
        assert_eq!((&error["code"], &error["decline_code"]), (&json!("card_declined"), &json!(decline_code)));
        assert_eq!(error["payment_intent"]["status"], "requires_payment_method");
        let again = api.pay(TEA, card, &form).await;
        assert_eq!((again.is_replay(), again.status, &again.body), (true, declined.status, &declined.body));
    }
    assert_eq!(api.payments().await, 2);
}

#[tokio::test]
async fn accounts_are_apart() {
    let api = Api::start().await;
    let (tea, ham) = (api.pay(TEA, "k", PAYMENT).await, api.pay(HAM, "k", PAYMENT).await);
    assert!(!ham.is_replay(), "the same key of another account is another key");
    let read = async |credentials: &str, intent: &Value| {
        let path = format!("/v1/payment_intents/{}", intent["id"].as_str().expect("an id"));
        answer(api.server.request(Method::GET, &path).header("authorization", credentials)).await
    };
    assert_eq!(read(TEA, &tea.json()).await.json(), tea.json());
    is_invalid_request(&read(TEA, &ham.json()).await, 404, Some("resource_missing"), Some("intent"));
}

#[tokio::test]
async fn a_secret_key_is_asked_for_before_anything_else() {
    let api = Api::start().await;
    api.pay(TEA, "k", PAYMENT).await;
    for credentials in ["", "Bearer", "Basic c2tfdGVzdF90ZWE6", "Bearer sk_test_te", "Bearer sk_live_tea"] {
        let rejected = api.pay(credentials, "k", PAYMENT).await;
        is_invalid_request(&rejected, 401, None, None);
        assert!(!rejected.text().contains("sk_test_te\""), "a secret is not repeated");
    }
    assert_eq!(api.payments().await, 1);
}

#[tokio::test]
async fn an_unknown_address_is_an_error_of_the_same_shape() {
    let api = Api::start().await;
    for (method, path) in [(Method::GET, "/v1/charges"), (Method::DELETE, "/v1/payment_intents"), (Method::GET, "/")] {
        is_invalid_request(&answer(api.server.request(method, path)).await, 404, None, None);
    }
}

#[test]
fn a_live_key_is_no_secret_key_of_this_server() {
    for secret_key in ["sk_live_tea", "sk_test_", ""] {
        let error = Accounts::new([secret_key]).err().expect("it is rejected").to_string();
        assert!(error.contains("`sk_test_`") && !error.contains("sk_live"), "{error}");
    }
}

/// A card network that has another charge under each reference.
struct OtherCharge;

impl CardNetwork for OtherCharge {
    fn charge(&self, _: &str, charge: Charge) -> BoxFuture<'static, Authorisation> {
        ready(Authorisation::Approved { amount: charge.amount + 1, currency: charge.currency }).boxed()
    }
}

#[tokio::test]
async fn answer_of_the_network_for_another_charge_is_not_booked() {
    let api = Api::with(Arc::new(OtherCharge)).await;
    assert_eq!(api.pay(TEA, "k", PAYMENT).await.status.as_u16(), 502);
    assert_eq!(api.payments().await, 0);
}
