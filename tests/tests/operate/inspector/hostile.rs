//! Scopes, callers and keys may contain hostile text.

use axum::http::StatusCode;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry};
use serde_json::json;

use crate::inspector::shop::{Shop, leave_behind};
use crate::inspector::stores::on_every_store;

on_every_store!(hostile_text_is_shown_and_does_nothing);

const HOSTILE: [&str; 8] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "\" autofocus onfocus=\"alert(1)",
    "line\r\nset-cookie: a=b\u{0}\u{1b}[2J\u{9b}",
    "\u{202e}drowssap\u{2066}\u{200b}",
    "100%2F/@//%<&amp;",
    "bob\u{e0041}\u{3164}\u{115f}\u{2028}\u{a0}",
    r"bob\u{e0041}\u{3164}\u{115f}\u{2028}\u{a0}",
];

/// Characters that neither a browser nor a terminal shows.
const UNSEEN: [char; 12] = [
    '\0',
    '\u{1b}',
    '\u{9b}',
    '\u{202e}',
    '\u{2066}',
    '\u{200b}',
    '\u{e0041}',
    '\u{3164}',
    '\u{115f}',
    '\u{2028}',
    '\u{a0}',
    '\u{7f}',
];

async fn hostile_text_is_shown_and_does_nothing(store: impl StoreAdmin + Clone) {
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    for text in HOSTILE {
        leave_behind(&store, &RecordKey::new(text, Some(text), text)).await;
    }
    let long = "x".repeat(5000);
    leave_behind(&store, &RecordKey::new("long", Some(&long), &long)).await;

    let listed = shop.json("/api/entries?reveal=keys").await;
    let entries = listed["entries"].as_array().expect("a list");
    for text in HOSTILE {
        let entry = entries.iter().find(|entry| entry["key"] == text).expect("JSON contains the original text");
        assert_eq!((&entry["caller"], &entry["shortened"]), (&json!(text), &json!(false)));
    }
    for address in ["/api/entries?reveal=keys", "/api/summary", "/api/entries?store=%F3%A0%81%81%E2%80%AE"] {
        assert!(!shop.get(address).await.text().contains(UNSEEN), "a terminal shows all of it: {address}");
    }
    let mut purges = Vec::new();
    let mut pages = vec![shop.get("?reveal=keys").await];
    for text in HOSTILE {
        let fields = [("action", "look_up"), ("scope", text), ("caller", text), ("key", text), ("reveal", "keys")];
        let page = shop.form("", &fields).await;
        assert_eq!(page.status, StatusCode::OK, "{text}");
        assert!(page.text().contains("One entry"), "{text}");
        purges.push(purge_of(page.text()));
        pages.push(page);
        let scope = percent_encoded(text);
        pages.push(shop.get(&format!("?scope={scope}&reveal=keys")).await);
        pages.push(shop.get(&format!("?store={scope}")).await);
        pages.push(shop.get(&format!("?state={scope}")).await);
        pages.push(shop.get(&format!("?{scope}=1")).await);
    }
    for page in &pages {
        let html = page.text();
        for tag in ["<script", "<img", "\"><img", "\" autofocus"] {
            assert!(!html.contains(tag), "{tag}");
        }
        assert!(!html.contains(UNSEEN), "{html}");
    }
    assert!(pages[0].text().contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(pages[0].text().contains(r"\u{202e}drowssap\u{2066}\u{200b}"));
    assert!(pages[0].text().contains(r"bob\u{e0041}\u{3164}") && pages[0].text().contains(r"bob\\u{e0041}\\u{3164}"));
    assert!(pages[0].text().contains("… (5000 characters)") && !pages[0].text().contains(&long));
    assert_eq!(listed["counts"]["past_lease"], json!(HOSTILE.len() + 1));

    // The values in the page's own form still name the entry.
    for [record_key, confirm] in purges {
        let fields = [("action", "purge"), ("record_key", record_key.as_str()), ("confirm", &confirm)];
        assert_eq!(shop.form("", &fields).await.status, StatusCode::OK, "{record_key}");
    }
    assert_eq!(shop.json("/api/summary").await["counts"]["past_lease"], 1);
}

#[tokio::test]
async fn long_callers_are_shortened_in_a_listing() {
    let store = MemoryStore::new();
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let long = "x".repeat(60_000);
    for number in 0..100 {
        leave_behind(&store, &RecordKey::new("long", Some(&format!("{long}{number}")), &long)).await;
    }
    let listed = shop.get("/api/entries?reveal=keys").await;
    assert!(listed.text().len() < 100 * 2000, "{} bytes", listed.text().len());
    let entries = listed.json();
    let (entry, beginning) = (&entries["entries"][0], format!("{}…", "x".repeat(255)));
    assert_eq!(
        (&entry["caller"], &entry["key"], &entry["shortened"]),
        (&json!(beginning), &json!(beginning), &json!(true))
    );
    let id = entry["id"].as_str().expect("an id");
    let whole = shop.json(&format!("/api/entries/{id}?reveal=keys")).await;
    assert_eq!((&whole["entry"]["key"], &whole["entry"]["shortened"]), (&json!(long), &json!(false)));
}

/// The fields of the form that purges an entry.
fn purge_of(html: &str) -> [String; 2] {
    ["record_key", "confirm"].map(|name| {
        let (_, field) = html.split_once(&format!("name=\"{name}\" value=\"")).expect("the form has the field");
        let (value, _) = field.split_once('"').expect("the value ends");
        value.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
    })
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| format!("{encoded}%{byte:02X}"))
}
