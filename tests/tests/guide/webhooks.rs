//! Stripe, Standard Webhooks and GitHub: forged, genuine and repeated deliveries.

use std::ffi::OsStr;
use std::path::Path;
use std::time::SystemTime;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::prelude::{BASE64_STANDARD, Engine};
use hmac::{Hmac, KeyInit, Mac};
use idempotent_runtime::testing;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Server, answer};
use sha2::Sha256;

// The extractors resemble each other: a program copies the one of its provider.

// The page has the following code, word for word.

/// The secrets that are shared with the senders.
#[derive(Clone)]
struct Secrets {
    stripe: String,
    standard: Vec<u8>,
    github: String,
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, StatusCode> {
    headers.get(name).and_then(|value| value.to_str().ok()).ok_or(StatusCode::UNAUTHORIZED)
}

/// Limits how long an attacker can send a captured delivery again.
fn check_time(seconds: &str) -> Result<(), StatusCode> {
    let sent: u64 = seconds.parse().map_err(|_| StatusCode::UNAUTHORIZED)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    if now.abs_diff(sent) <= 5 * 60 { Ok(()) } else { Err(StatusCode::UNAUTHORIZED) }
}

/// One valid signature is enough: a sender signs with two secrets while it replaces one. Compares in constant time.
fn check_signature(
    secret: &[u8],
    signed: &[&[u8]],
    mut signatures: impl Iterator<Item = Vec<u8>>,
) -> Result<(), StatusCode> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    for piece in signed {
        mac.update(piece);
    }
    let is_genuine = signatures.any(|signature| mac.clone().verify_slice(&signature).is_ok());
    if is_genuine { Ok(()) } else { Err(StatusCode::UNAUTHORIZED) }
}

#[derive(serde::Deserialize)]
struct StripeEvent {
    id: String,
}

impl FromRequest<Secrets> for StripeEvent {
    type Rejection = StatusCode;

    async fn from_request(request: Request, secrets: &Secrets) -> Result<Self, StatusCode> {
        let signature = header(request.headers(), "stripe-signature")?.to_owned();
        let body = Bytes::from_request(request, secrets).await.map_err(|error| error.status())?;
        let all = |name| signature.split(',').filter_map(move |part| part.trim().strip_prefix(name));
        let time = all("t=").next().ok_or(StatusCode::UNAUTHORIZED)?;
        let signatures = all("v1=").filter_map(|digits| hex::decode(digits).ok());
        check_signature(secrets.stripe.as_bytes(), &[time.as_bytes(), b".", &body], signatures)?;
        check_time(time)?;
        serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)
    }
}

#[idempotent(scope = "stripe-events", ttl = "7d", key = event.id, caller = "stripe", required, fingerprint = none)]
async fn receive_from_stripe(event: StripeEvent) -> String {
    format!("received {}", event.id)
}

struct StandardEvent {
    id: String,
    body: Bytes,
}

impl FromRequest<Secrets> for StandardEvent {
    type Rejection = StatusCode;

    async fn from_request(request: Request, secrets: &Secrets) -> Result<Self, StatusCode> {
        let headers = request.headers().clone();
        let body = Bytes::from_request(request, secrets).await.map_err(|error| error.status())?;
        let (id, time) = (header(&headers, "webhook-id")?, header(&headers, "webhook-timestamp")?);
        let signatures = header(&headers, "webhook-signature")?.split(' ');
        let signatures = signatures.filter_map(|one| BASE64_STANDARD.decode(one.strip_prefix("v1,")?).ok());
        check_signature(&secrets.standard, &[id.as_bytes(), b".", time.as_bytes(), b".", &body], signatures)?;
        check_time(time)?;
        Ok(Self { id: id.to_owned(), body })
    }
}

#[idempotent(scope = "standard-events", ttl = "7d", key = event.id, caller = "standard", required, fingerprint = none)]
async fn receive_standard(event: StandardEvent) -> String {
    format!("{}: {} bytes", event.id, event.body.len())
}

struct GitHubEvent {
    delivery: String,
    body: Bytes,
}

impl FromRequest<Secrets> for GitHubEvent {
    type Rejection = StatusCode;

    async fn from_request(request: Request, secrets: &Secrets) -> Result<Self, StatusCode> {
        let headers = request.headers().clone();
        let body = Bytes::from_request(request, secrets).await.map_err(|error| error.status())?;
        let signature = header(&headers, "x-hub-signature-256")?.strip_prefix("sha256=");
        let signature = signature.and_then(|digits| hex::decode(digits).ok());
        check_signature(secrets.github.as_bytes(), &[&body], signature.into_iter())?;
        Ok(Self { delivery: header(&headers, "x-github-delivery")?.to_owned(), body })
    }
}

#[idempotent(scope = "github-events", ttl = "7d", key = event.delivery, caller = "github", required)]
async fn receive_from_github(event: GitHubEvent) -> String {
    format!("{}: {} bytes", event.delivery, event.body.len())
}

// The code of the page ends here.

const STRIPE: &str = "whsec_of-stripe";
const STANDARD: &[u8] = b"the secret of standard webhooks";
const GITHUB: &str = "of-github";
const EVENT: &str = r#"{"id":"evt_1","pending_webhooks":2}"#;
const EVENT_AGAIN: &str = r#"{"id":"evt_1","pending_webhooks":1}"#;

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn sign(secret: &[u8], signed: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    mac.chain_update(signed.as_bytes()).finalize().into_bytes().to_vec()
}

type Headers = Vec<(&'static str, String)>;

fn by_stripe(secret: &str, sent: u64, body: &str) -> Headers {
    let signature = hex::encode(sign(secret.as_bytes(), &format!("{sent}.{body}")));
    // A sender that replaces its secret sends two signatures.
    vec![("stripe-signature", format!("t={sent},v1={},v1={signature},v0=00", "0".repeat(64)))]
}

fn by_standard(secret: &[u8], id: &str, sent: u64, body: &str) -> Headers {
    let signature = BASE64_STANDARD.encode(sign(secret, &format!("{id}.{sent}.{body}")));
    let signature = ("webhook-signature", format!("v1,{} v1,{signature} v1a,AAAA", BASE64_STANDARD.encode([0; 32])));
    vec![("webhook-id", id.to_owned()), ("webhook-timestamp", sent.to_string()), signature]
}

fn by_github(secret: &str, delivery: &str, body: &str) -> Headers {
    let signature = hex::encode(sign(secret.as_bytes(), body));
    vec![("x-hub-signature-256", format!("sha256={signature}")), ("x-github-delivery", delivery.to_owned())]
}

async fn serve(registry: &Registry) -> Server {
    let secrets = Secrets { stripe: STRIPE.into(), standard: STANDARD.into(), github: GITHUB.into() };
    let app = Router::new()
        .route("/stripe", post(receive_from_stripe))
        .route("/standard", post(receive_standard))
        .route("/github", post(receive_from_github))
        .with_state(secrets);
    Server::start(app.layer(registry.layer())).await
}

async fn deliver(server: &Server, path: &str, headers: Headers, body: &'static str) -> Answer {
    let request = headers.into_iter().fold(server.post(path), |request, (name, value)| request.header(name, value));
    answer(request.body(body)).await
}

/// Sends forged deliveries, the genuine one, its redelivery, and the forged ones again. The handler runs once.
async fn play(
    path: &str,
    scope: &str,
    forged: impl Fn() -> Vec<Headers>,
    genuine: impl Fn(&str) -> Headers,
    redelivered: &'static str,
) {
    let registry = testing::registry();
    let server = serve(&registry).await;
    let attack = async || {
        let claims = registry.store().claims();
        for headers in forged() {
            let rejected = deliver(&server, path, headers.clone(), EVENT).await;
            let got = (rejected.status, rejected.is_replay(), rejected.text());
            assert_eq!(got, (StatusCode::UNAUTHORIZED, false, ""), "{headers:?}");
        }
        assert_eq!(registry.store().claims(), claims, "a forged event claims nothing");
    };
    attack().await;
    let first = deliver(&server, path, genuine(EVENT), EVENT).await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::OK, false), "{}", first.text());
    let again = deliver(&server, path, genuine(redelivered), redelivered).await;
    assert_eq!((again.text(), again.is_replay()), (first.text(), true));
    attack().await;
    assert_eq!((registry.executions(scope), registry.replays(scope)), (1, 1));
}

#[tokio::test]
async fn stripe_event_runs_once_and_forged_ones_never() {
    let genuine = |body: &str| by_stripe(STRIPE, now() - 60, body);
    let forged = || {
        let stale = by_stripe(STRIPE, now() - 600, EVENT);
        vec![vec![], by_stripe("whsec_guessed", now(), EVENT), by_stripe(STRIPE, now(), "another body"), stale]
    };
    play("/stripe", "stripe-events", forged, genuine, EVENT_AGAIN).await;
}

#[tokio::test]
async fn standard_webhook_runs_once_and_forged_ones_never() {
    let genuine = |body: &str| by_standard(STANDARD, "msg_1", now() + 60, body);
    let forged = || {
        let mut other_id = by_standard(STANDARD, "msg_1", now(), EVENT);
        other_id[0].1 = "msg_2".to_owned();
        let stale = by_standard(STANDARD, "msg_1", now() - 600, EVENT);
        vec![vec![], by_standard(b"guessed", "msg_1", now(), EVENT), other_id, stale]
    };
    play("/standard", "standard-events", forged, genuine, EVENT_AGAIN).await;
}

#[tokio::test]
async fn github_event_runs_once_and_forged_ones_never() {
    let genuine = |body: &str| by_github(GITHUB, "72d3162e", body);
    let forged =
        || vec![vec![], by_github("guessed", "72d3162e", EVENT), by_github(GITHUB, "72d3162e", "another body")];
    play("/github", "github-events", forged, genuine, EVENT).await;
}

#[tokio::test]
async fn github_delivery_id_is_not_signed_so_the_body_counts() {
    let server = serve(&testing::registry()).await;
    let send = async |delivery, body| deliver(&server, "/github", by_github(GITHUB, delivery, body), body).await;
    assert_eq!(send("72d3162e", EVENT).await.status, StatusCode::OK);
    assert_eq!(send("72d3162e", EVENT_AGAIN).await.rejection(), "key_reused");
    let captured = send("another", EVENT).await;
    assert_eq!((captured.status, captured.is_replay()), (StatusCode::OK, false), "it runs again, as the page says");
}

#[tokio::test]
async fn event_without_an_id_claims_nothing() {
    let registry = testing::registry();
    let server = serve(&registry).await;
    let nameless = deliver(&server, "/stripe", by_stripe(STRIPE, now(), "{}"), "{}").await;
    assert_eq!((nameless.status, registry.store().claims()), (StatusCode::BAD_REQUEST, 0));
}

/// Examples from the documentation of GitHub and Standard Webhooks.
#[test]
fn published_signatures_are_verified() {
    let github = hex::decode("757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17").expect("digits");
    let signed: [&[u8]; 1] = [b"Hello, World!"];
    assert_eq!(check_signature(b"It's a Secret to Everybody", &signed, [github].into_iter()), Ok(()));
    let secret = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("Base64");
    let signature = BASE64_STANDARD.decode("g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=").expect("Base64");
    let signed: [&[u8]; 1] = [b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}"];
    assert_eq!(check_signature(&secret, &signed, [signature].into_iter()), Ok(()));
}

#[test]
fn code_of_the_webhooks_page_is_what_is_played() {
    let (_, played) = include_str!("webhooks.rs").split_once("word for word.\n\n").expect("the marker");
    let (played, _) = played.split_once("\n// The code of the page ends here.").expect("the marker");
    assert!(crate::guide::page("webhooks").contains(played));
}

/// All recipes in the guide, the other documents and the examples whose key comes from an event. A forged event that
/// claims the id of a genuine one would suppress it, so each recipe must be tested: those of this page here, and that
/// of `charges` in its own tests.
#[test]
fn recipes_with_the_key_of_an_event_are_all_played() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut recipes = Vec::new();
    let mut folders: Vec<_> = ["idempotent-runtime/src", "idempotent-macros/src", "docs", "examples"]
        .map(|name| Path::new(root).join(name))
        .into();
    let mut texts = vec![Path::new(root).join("README.md")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("it has an entry").path();
            match path.extension().and_then(OsStr::to_str) {
                Some("md" | "rs") => texts.push(path),
                _ if path.is_dir() && !path.ends_with("node_modules") => folders.push(path),
                _ => {}
            }
        }
    }
    for path in texts {
        let text = std::fs::read_to_string(path).expect("it is text");
        for attribute in text.split("#[idempotent(").skip(1) {
            let Some((arguments, _)) = attribute.split_once(")]") else { continue };
            if arguments.contains("key = event") || arguments.contains("events\"") {
                let (_, scope) = arguments.split_once("scope = \"").expect("a recipe names its scope");
                recipes.extend(scope.split_once('"').map(|(scope, _)| scope.to_owned()));
            }
        }
    }
    recipes.sort();
    assert_eq!(recipes, ["github-events", "network-events", "standard-events", "stripe-events"]);
}
