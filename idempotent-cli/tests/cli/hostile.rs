//! Scopes, callers and keys come from other people, and an operator may copy an argument from them.

use std::collections::BTreeSet;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::SqliteStore;
use idempotent_tests::sqlite::{SqliteFile, acquire};

use crate::shop::idempotent;

/// Control characters, direction marks, and characters that a terminal does not show.
const UNSEEN: [char; 18] = [
    '\u{1b}',
    '\u{9b}',
    '\r',
    '\u{7f}',
    '\u{ad}',
    '\u{a0}',
    '\u{34f}',
    '\u{115f}',
    '\u{180e}',
    '\u{200b}',
    '\u{2028}',
    '\u{202e}',
    '\u{2800}',
    '\u{3164}',
    '\u{fe0f}',
    '\u{ffa0}',
    '\u{1d173}',
    '\u{e0041}',
];

/// Creates a file in which each of these callers has used one key. Returns it with its URL.
async fn file_of(callers: &[String]) -> (SqliteFile, String) {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    for caller in callers {
        let _ = acquire(&store, &RecordKey::new("charges", Some(caller), caller)).await;
    }
    let url = format!("sqlite://{}", file.path().display());
    (file, url)
}

#[tokio::test]
async fn hostile_text_does_not_reach_the_terminal() {
    let hostile = format!("a{}[2J\n\\", UNSEEN.iter().collect::<String>());
    let (file, url) = file_of(&[]).await;
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let _ = acquire(&store, &RecordKey::new(&hostile, Some(&hostile), &hostile)).await;
    for arguments in [
        &["list", "--reveal"][..],
        &["list", "--reveal", "--json"],
        &["show", "--scope", &hostile, "--caller", &hostile, &hostile, "--reveal"],
        &["show", "--scope", &hostile, "--caller", &hostile, &hostile, "--reveal", "--json"],
    ] {
        let said = idempotent(&[&["--store", &url][..], arguments].concat()).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(!said.out.contains(UNSEEN), "{said:?}");
    }
    let json = idempotent(&["--store", &url, "list", "--reveal", "--json"]).await.json();
    assert_eq!(json["entries"][0]["key"], hostile, "a program reads it as it is");
}

#[tokio::test]
async fn callers_that_differ_look_different() {
    let alike = UNSEEN.iter().map(|unseen| format!("bob{unseen}"));
    let spelled = ["bob", " bob", "bob ", r"bob\u{202e}", r"bob\\u{202e}", r"bob\u{20}"].map(str::to_owned);
    let callers: Vec<_> = alike.chain(spelled).collect();
    let (_file, url) = file_of(&callers).await;
    let table = idempotent(&["--store", &url, "list"]).await.out;
    let column = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    let shown: BTreeSet<_> = table.lines().filter(|line| line.starts_with("in_flight ")).filter_map(column).collect();
    assert_eq!(shown.len(), callers.len(), "{table}");
    assert!(!table.contains(UNSEEN), "{table}");
    let json = idempotent(&["--store", &url, "list", "--json"]).await;
    assert!(!json.out.contains(UNSEEN), "{}", json.out);
    let told = json.json();
    let told: BTreeSet<_> =
        told["entries"].as_array().expect("a list").iter().filter_map(|entry| entry["caller"].as_str()).collect();
    assert_eq!(told, callers.iter().map(String::as_str).collect(), "a program reads each as it is");
}

#[tokio::test]
async fn hostile_argument_breaks_no_line_of_an_error() {
    let (_file, url) = file_of(&[]).await;
    let hostile = "1\n2\u{1b}[2j\u{202e}\u{e0041}";
    let shown = r"1\u{a}2\u{1b}[2j\u{202e}\u{e0041}";
    for arguments in [
        &["show", "--id", hostile][..],
        &["list", "--limit", hostile],
        &["list", "--state", hostile],
        &["list", "--schema", hostile],
        &[hostile],
    ] {
        let said = idempotent(&[&["--store", &url][..], arguments].concat()).await;
        assert_ne!(said.code, Some(0), "{arguments:?}");
        assert_is_harmless(&said.error);
    }
    for scheme in ["sqlite", "mysql", "redis"] {
        let said = idempotent(&["--store", &format!("{scheme}://{hostile}"), "list"]).await;
        assert_ne!(said.code, Some(0), "{scheme}");
        assert_is_harmless(&said.error);
    }
    let of_id = idempotent(&["--store", &url, "show", "--id", hostile]).await.error;
    assert_eq!(
        of_id,
        format!("error: `--id {shown}` is no id: write the 32 hexadecimal digits that a listing shows\n")
    );
    let of_limit = idempotent(&["--store", &url, "list", "--limit", hostile]).await.error;
    assert!(of_limit.contains(&format!("invalid value '{shown}'")), "{of_limit}");
}

fn assert_is_harmless(error: &str) {
    assert!(!error.contains(['\u{1b}', '\u{202e}', '\u{e0041}']), "{error:?}");
    assert!(!error.lines().any(|line| line.starts_with('2')), "{error:?}");
}

#[tokio::test]
async fn long_callers_are_shortened_in_a_listing() {
    let long = format!("{}\u{1f980}", "x".repeat(60_000));
    let (_file, url) = file_of(std::slice::from_ref(&long)).await;
    for arguments in [&["list", "--reveal"][..], &["list", "--reveal", "--json"]] {
        let said = idempotent(&[&["--store", &url][..], arguments].concat()).await;
        assert!(said.out.len() < 2500 && said.out.contains(&format!("{}…", "x".repeat(255))), "{said:?}");
    }
    let listed = idempotent(&["--store", &url, "list", "--json"]).await.json();
    let id = listed["entries"][0]["id"].as_str().expect("an id");
    let shown = idempotent(&["--store", &url, "show", "--id", id, "--json"]).await.json();
    assert_eq!((&listed["entries"][0]["shortened"], &shown["entry"]["shortened"]), (&true.into(), &false.into()));
    assert_eq!(shown["entry"]["caller"], long, "one entry is shown whole");
}
