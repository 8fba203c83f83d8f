//! The page in a real browser.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, MemoryStore, SqliteStore, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody, Registry};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{PATIENCE, eventually};
use thirtyfour::prelude::*;

use crate::chromium::Chromium;
use crate::inspector::shop::{AT, Shop};

const HOURS: u64 = 3600;

/// A claim or a record that was made some time ago.
struct Past<'a> {
    scope: &'a str,
    caller: Option<&'a str>,
    key: String,
    seconds: u64,
}

impl Past<'_> {
    async fn claimed(&self, store: &impl StoreAdmin, lease: Duration) -> (RecordKey, Token) {
        // A token contains its time in the bits above the 38 bits of its counter.
        let token = Token::from_u128(Token::unique().as_u128() - (u128::from(self.seconds * 1000) << 38));
        let request = ClaimRequest::new(token, Fingerprint::from_bytes([7; 32]))
            .with_lease(lease)
            .with_ttl(Duration::from_hours(24).saturating_sub(Duration::from_secs(self.seconds)))
            .with_after_crash(AfterCrash::Rerun);
        let key = RecordKey::new(self.scope, self.caller, &self.key);
        assert_eq!(store.claim(&key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
        (key, token)
    }

    async fn recorded(&self, store: &impl StoreAdmin, body: RecordedBody) {
        let (key, token) = self.claimed(store, Duration::from_mins(1)).await;
        let record = Record::new(
            http::StatusCode::CREATED,
            Vec::new(),
            body,
            Fingerprint::from_bytes([7; 32]),
            SystemTime::now() - Duration::from_secs(self.seconds),
        );
        let _ = store.complete(&key, token, record, Duration::from_hours(24)).await.expect("the store answers");
    }
}

/// Fills the store with the entries of a shop's day, some of which need an operator.
async fn fill(store: &impl StoreAdmin, file: &SqliteFile) {
    let mut uuids = (1_u64..).map(|number| {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{:08x}-{:04x}-4{:03x}-8e21-{:012x}", mixed >> 32, mixed >> 16 & 0xffff, mixed & 0xfff, mixed >> 20)
    });
    let mut past = |scope, caller, seconds| Past { scope, caller, key: uuids.next().expect("endless"), seconds };
    for (number, caller) in (0..120).zip(["acct_17", "acct_23", "acct_4"].into_iter().cycle()) {
        let body = RecordedBody::Whole(vec![b'x'; 180 + 7 * number].into());
        past("charges", Some(caller), 300 * number as u64 + 40).recorded(store, body).await;
    }
    for number in 0..9 {
        past("exports", None, 5000 * number + 900).recorded(store, RecordedBody::NotRecorded).await;
    }
    for seconds in [2, 7, 95] {
        past("payouts", None, seconds).claimed(store, Duration::from_secs(30 - seconds % 30)).await;
    }
    for seconds in [3 * HOURS + 700, 11 * 60] {
        past("payouts", None, seconds).claimed(store, Duration::ZERO).await;
    }
    for seconds in [5 * HOURS + 1300, 52 * 60 + 8] {
        past("transfers", None, seconds).claimed(store, Duration::ZERO).await;
    }
    let (damaged, _) = past("charges", Some("acct_4"), HOURS).claimed(store, Duration::from_mins(1)).await;
    file.execute(&format!("UPDATE idempotency_records SET attempt = -1 WHERE key = '{}'", damaged.as_str())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_looks_a_key_up_reveals_keys_and_purges() {
    let chromium = Chromium::start().await;
    // The browser must end even if the test fails.
    let outcome = AssertUnwindSafe(visit(&chromium)).catch_unwind().await;
    chromium.driver.clone().quit().await.expect("Chromium ends");
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}

async fn visit(chromium: &Chromium) {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let registry = Registry::builder(store.clone()).store("ledger", MemoryStore::new()).build();
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    fill(&store, &file).await;
    let driver = &chromium.driver;
    chromium.authorize("Bearer of-alice").await;
    let address = format!("http://{}{AT}", shop.server.address());

    chromium.look_like(1100, "light").await;
    driver.goto(&address).await.expect("the page opens");
    assert_eq!(driver.title().await.expect("a title"), "Idempotency inspector");
    assert_eq!(count(chromium, "completed").await, "120");
    assert_eq!(count(chromium, "outcome_unknown").await, "2");
    let styled = chromium.evaluate("getComputedStyle(document.querySelector('.states')).display").await;
    assert_eq!(styled, "grid", "the page's policy allows its own style");
    keep(chromium, "inspector.png").await;

    fits_each_screen(chromium).await;

    shop.begin_payout("the-key-of-this-payout").await;
    fill_in(driver, "scope", "payouts").await;
    fill_in(driver, "key", "the-key-of-this-payout").await;
    click(driver, ".look-up button").await;
    shows(driver, "#entry", &["In flight", "the-… (22)"]).await;
    assert!(!driver.source().await.expect("a page").contains(">the-key-of-this-payout<"));
    click(driver, "#all").await;
    assert_eq!(count(chromium, "completed").await, "120", "what is looked up does not narrow the overview");

    click(driver, "#reveal").await;
    shows(driver, "#reveal", &["Mask keys"]).await;
    click(driver, ".state.in_flight a").await;
    shows(driver, ".state [aria-current]", &["In flight"]).await;
    shows(driver, ".entries.in_flight", &["the-key-of-this-payout"]).await;
    click(driver, ".entries tbody tr:last-child .open a").await;
    shows(driver, "#entry", &["One entry", "the-key-of-this-payout"]).await;

    // A single click purges nothing: it opens the warning, and then the box must be ticked.
    click(driver, ".purge summary").await;
    shows(driver, ".purge", &["a retry that reaches another process runs it a second time beside the first"]).await;
    click(driver, ".purge button").await;
    assert_eq!(chromium.evaluate("document.querySelector('.purge form').checkValidity()").await, false);
    keep(chromium, "inspector-entry.png").await;
    click(driver, ".purge [type=checkbox]").await;
    click(driver, ".purge button").await;
    shows(driver, "#entry h2", &["Purged"]).await;
    let key = RecordKey::new("payouts", None, "the-key-of-this-payout");
    assert_eq!(store.get(&key).await.expect("the store answers"), None);

    assert_eq!(chromium.console().await, Vec::<String>::new());
    let requested = chromium.requested().await;
    assert!(requested.len() >= 6, "{requested:?}");
    assert!(requested.iter().all(|url| url.starts_with(&address) || url == "data:,"), "{requested:?}");
    shop.runs.let_finish(1);
    shop.runs.until_finished(1).await;
}

/// Checks the page in dark colours, and on a narrow screen.
async fn fits_each_screen(chromium: &Chromium) {
    for (width, scheme, ground) in [(1100, "dark", "rgb(16, 20, 27)"), (390, "light", "rgb(246, 247, 249)")] {
        chromium.look_like(width, scheme).await;
        assert_eq!(chromium.evaluate("getComputedStyle(document.body).backgroundColor").await, ground);
        let wide = chromium.evaluate("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().is_some_and(|wide| wide <= width.into()), "{wide} is wider than the screen");
        keep(chromium, &format!("inspector-{scheme}-{width}.png")).await;
    }
    chromium.look_like(1100, "light").await;
}

async fn count(chromium: &Chromium, state: &str) -> String {
    text(&chromium.driver, &format!(".state.{state} strong")).await
}

async fn find(driver: &WebDriver, selector: &str) -> WebElement {
    let query = driver.query(By::Css(selector)).wait(PATIENCE, Duration::from_millis(20));
    query.first().await.expect("it is on the page")
}

async fn text(driver: &WebDriver, selector: &str) -> String {
    find(driver, selector).await.text().await.expect("it has a text")
}

/// Waits for the page that shows all of these texts.
async fn shows(driver: &WebDriver, selector: &str, wanted: &[&str]) {
    // The element may belong to the previous page, which vanishes while it is read.
    let shown = async || find(driver, selector).await.text().await.unwrap_or_default();
    eventually(shown, |shown| wanted.iter().all(|wanted| shown.contains(wanted))).await;
}

async fn click(driver: &WebDriver, selector: &str) {
    find(driver, selector).await.click().await.expect("it can be clicked");
}

async fn fill_in(driver: &WebDriver, name: &str, value: &str) {
    let field = find(driver, &format!(".look-up [name={name}]:not([type=hidden])")).await;
    field.send_keys(value).await.expect("it takes a text");
}

/// Saves the picture that `cargo xtask picture` asks for, and other pictures if `INSPECTOR_PICTURES` asks for them.
async fn keep(chromium: &Chromium, name: &str) {
    let picture = chromium.picture().await;
    assert!(picture.starts_with(b"\x89PNG"), "a picture");
    let kept = if name == "inspector.png" { "INSPECTOR_PICTURE" } else { "INSPECTOR_PICTURES" };
    if let Some(folder) = std::env::var_os(kept) {
        std::fs::write(std::path::Path::new(&folder).join(name), picture).expect("the folder can be written");
    }
}
