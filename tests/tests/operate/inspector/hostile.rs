//! Scopes, callers and keys are other people's text.

use axum::http::StatusCode;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::StoreAdmin;
use idempotent_runtime::{RecordKey, Registry};
use serde_json::json;

use crate::inspector::shop::{Shop, leave_behind};
use crate::inspector::stores::on_every_store;

on_every_store!(hostile_text_is_shown_and_does_nothing);

const HOSTILE: [&str; 6] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "\" autofocus onfocus=\"alert(1)",
    "line\r\nset-cookie: a=b\u{0}\u{1b}[2J\u{9b}",
    "\u{202e}drowssap\u{2066}\u{200b}",
    "100%2F/@//%<&amp;",
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
    for text in HOSTILE.into_iter().chain([long.as_str()]) {
        let entry = entries.iter().find(|entry| entry["key"] == text).expect("JSON tells it as it is");
        assert_eq!(entry["caller"], text);
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
        assert!(!html.contains(['\0', '\u{1b}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200b}']), "{html}");
    }
    assert!(pages[0].text().contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(pages[0].text().contains(r"\u{202e}drowssap\u{2066}\u{200b}"));
    assert!(pages[0].text().contains("… (5000 characters)") && !pages[0].text().contains(&long));
    assert_eq!(listed["counts"]["past_lease"], json!(HOSTILE.len() + 1));

    // What the page's own form sends still names the entry.
    for [record_key, confirm] in purges {
        let fields = [("action", "purge"), ("record_key", record_key.as_str()), ("confirm", &confirm)];
        assert_eq!(shop.form("", &fields).await.status, StatusCode::OK, "{record_key}");
    }
    assert_eq!(shop.json("/api/summary").await["counts"]["past_lease"], 1);
}

/// The fields of the form that purges.
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
