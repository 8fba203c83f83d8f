//! Tests of `resolve`: retries get the response that an operator gives.

use std::fs;
use std::process::Command;

use axum::http::StatusCode;
use serde_json::Value;

use crate::shop::{Shop, run};

const CUT_OFF: [&str; 4] = ["resolve", "--scope", "transfers", "cut-off-8e03978e"];
const RUNNING: [&str; 4] = ["resolve", "--scope", "payouts", "running-8e03978e"];
const EXECUTED: [&str; 10] = [
    "--status",
    "201",
    "--header",
    "content-type: text/plain",
    "--header",
    "x-transfer: tr_17",
    "--body",
    "paid",
    "--reason",
    "tr_17 is at the bank",
];
const NOT_EXECUTED: [&str; 3] = ["--not-executed", "--reason", "the bank has no transfer"];

fn with<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

#[tokio::test]
async fn retries_get_the_response_on_every_store() {
    for shop in Shop::of_every_kind().await {
        let executed = with(&[&CUT_OFF, &EXECUTED, &["--unsealed", "--actor", "alice"]]);
        let silent = shop.asks(&executed).await;
        assert_eq!(silent.code, Some(4), "{silent:?}");
        assert!(silent.error.contains("nothing was resolved: there is no terminal to ask on"), "{silent:?}");
        let rejected = shop.asks_a_person(&executed, "no").await;
        assert_eq!(rejected.code, Some(4), "{rejected:?}");
        assert!(
            rejected.out.contains("for 1day, retries get a response with status 201; a retry after"),
            "{rejected:?}"
        );
        assert_eq!(shop.retry().await.rejection(), "outcome_unknown");

        let confirmed = shop.asks_a_person(&executed, "yes").await;
        assert_eq!(confirmed.code, Some(0), "{confirmed:?}");
        assert!(confirmed.out.contains("resolved: retries with this key get the response"), "{confirmed:?}");
        let retry = shop.retry().await;
        assert_eq!((retry.status, retry.text(), retry.is_replay()), (StatusCode::CREATED, "paid", true));
        assert_eq!(retry.headers["x-transfer"], "tr_17");

        let again = shop.asks(&with(&[&executed, &["--yes"]])).await;
        assert_eq!(again.code, Some(4), "{again:?}");
        assert!(again.error.contains("the entry is a record"), "{again:?}");
        let running = shop.asks(&with(&[&RUNNING, &NOT_EXECUTED, &["--yes"]])).await;
        assert_eq!(running.code, Some(4), "{running:?}");
        assert!(running.error.contains("the lease of the claim has not expired"), "{running:?}");
        let absent =
            shop.asks(&with(&[&["resolve", "--scope", "transfers", "another"], &NOT_EXECUTED, &["--yes"]])).await;
        assert_eq!(absent.code, Some(1), "{absent:?}");
    }
}

#[tokio::test]
async fn of_two_operators_the_second_is_told() {
    for shop in Shop::of_every_kind().await {
        let not_executed = with(&[&CUT_OFF, &NOT_EXECUTED, &["--yes", "--json"]]);
        let faster = async || {
            let said = shop.asks(&not_executed).await;
            // The environment contains no user name.
            assert!(said.error.contains(r#""by":"uid "#), "{said:?}");
            let told = said.json();
            assert_eq!((&told["resolved"], &told["entry"]["state"]), (&true.into(), &"outcome_unknown".into()));
        };
        let late = shop.asks_a_person_who_waits(&with(&[&CUT_OFF, &EXECUTED, &["--unsealed"]]), faster, "yes").await;
        assert_eq!(late.code, Some(4), "{late:?}");
        assert!(late.out.contains("was resolved, completed or taken over meanwhile; look at it again"), "{late:?}");
        assert_eq!(shop.retry().await.status, StatusCode::INTERNAL_SERVER_ERROR, "it runs, and is cut off again");
    }
}

#[tokio::test]
async fn the_audit_has_who_resolved_what_and_why() {
    let shop = Shop::sqlite().await;
    shop.cut_off().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = folder.path().join("audit.log");
    let path = log.to_str().expect("text");
    let options = ["--audit-log", path, "--actor", "alice\u{202e}", "--unsealed", "--yes"];
    let nowhere = ["--audit-log", "/nowhere/audit.log", "--unsealed", "--yes"];
    let untold = shop.asks(&with(&[&CUT_OFF, &EXECUTED, &nowhere])).await;
    assert_eq!(untold.code, Some(3), "{untold:?}");
    assert!(untold.error.contains("nothing was resolved: the audit log `/nowhere/audit.log` cannot be written"));

    let done = shop.asks(&with(&[&CUT_OFF, &EXECUTED, &options])).await;
    assert_eq!((done.code, done.error.as_str()), (Some(0), ""), "{done:?}");
    let text = fs::read_to_string(&log).expect("the audit is written");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().expect("text")).collect();
    assert_eq!(outcomes, ["asked", "resolved_as_executed"]);
    for (field, value) in [
        ("action", "resolve"),
        ("by", "alice\u{202e}"),
        ("scope", "transfers"),
        ("key", "cut-… (16)"),
        ("state", "outcome_unknown"),
        ("reason", "tr_17 is at the bank"),
    ] {
        assert_eq!(lines[1][field], value, "{field} in {}", lines[1]);
    }
    assert_eq!(lines[1]["status"], 201);
    assert!(text.contains(r"alice\u202e") && !text.contains('\u{202e}'), "a terminal shows the name as it is: {text}");
    assert!(!text.contains("paid") && !text.contains("cut-off-8e03978e"), "no response and no key is in the audit");

    shop.charge("completed-8e03978e").await;
    let on_screen = shop.asks(&with(&[&CUT_OFF, &NOT_EXECUTED, &["--yes"]])).await;
    assert_eq!(on_screen.code, Some(4), "{on_screen:?}");
}

#[tokio::test]
async fn a_registry_that_seals_gets_a_sealed_response() {
    let (key, other) = ("1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=", "8gKfEvGBwHnP0lH2yTn5e6aLx8k0Yx1m7P8qGJr3ZQ4=");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("sealing.key");
    fs::write(&file, format!("{key}\n")).expect("the key is written");
    let shop = Shop::sqlite_sealed(key).await;
    shop.cut_off().await;
    let executed = with(&[&CUT_OFF, &EXECUTED, &["--yes"]]);
    let neither = shop.asks(&executed).await;
    assert_eq!(neither.code, Some(2), "{neither:?}");
    assert!(neither.error.contains("say whether the registry seals its records"), "{neither:?}");
    assert!(neither.error.contains("IDEMPOTENT_SEALING_KEY"), "{neither:?}");
    let malformed = shop.asks_with_key(&executed, "s3cret").await;
    assert_eq!(malformed.code, Some(2), "{malformed:?}");
    assert!(!malformed.error.contains("s3cret"), "{malformed:?}");
    assert_eq!(shop.retry().await.rejection(), "outcome_unknown");

    let sealed_for = ["--sealing-key-file", file.to_str().expect("text"), "--deployment", "production"];
    let sealed = shop.asks(&with(&[&executed, &sealed_for])).await;
    assert_eq!(sealed.code, Some(0), "{sealed:?}");
    let retry = shop.retry().await;
    assert_eq!((retry.status, retry.text(), retry.is_replay()), (StatusCode::CREATED, "paid", true));
    let wrong_key = Shop::sqlite_sealed(key).await;
    wrong_key.cut_off().await;
    assert_eq!(wrong_key.asks_with_key(&executed, other).await.code, Some(0));
    assert_eq!(wrong_key.retry().await.rejection(), "store_unavailable", "it is sealed, and never runs again");
    let repeated = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let rejected = wrong_key.asks_with_key(&executed, repeated).await;
    assert_eq!(rejected.code, Some(2), "{rejected:?}");
    assert!(rejected.error.contains("repeats one byte"), "{rejected:?}");

    let elsewhere = Shop::sqlite_sealed(key).await;
    elsewhere.cut_off().await;
    let for_another_store = with(&[&executed, &sealed_for, &["--store-name", "payments"]]);
    assert_eq!(elsewhere.asks(&for_another_store).await.code, Some(0));
    assert_eq!(elsewhere.retry().await.rejection(), "store_unavailable", "it is bound to its store");
}

#[tokio::test]
async fn a_wrong_resolution_is_told_what_to_write() {
    let shop = Shop::sqlite().await;
    shop.cut_off().await;
    let said = ["--reason", "r", "--unsealed", "--yes"];
    for (arguments, words) in [
        (&["--reason", "r"][..], "required"),
        (&["--status", "201", "--unsealed"], "--reason"),
        (&["--status", "201", "--not-executed", "--reason", "r"], "cannot be used with"),
        (&["--not-executed", "--body", "paid", "--reason", "r"], "cannot be used with"),
        (&["--not-executed", "--ttl", "7d", "--reason", "r"], "cannot be used with"),
        (&with(&[&["--status", "101"], &said]), "interim status"),
        (&with(&[&["--status", "204", "--body", "paid"], &said]), "204, 205 or 304 has no body"),
        (&with(&[&["--status", "10000"], &said]), "`--status 10000` is no status"),
        (&with(&[&["--status", "201", "--header", "none"], &said]), "`--header none` is no header"),
        (&with(&[&["--status", "201", "--header", "set-cookie: a=b"], &said]), "`set-cookie` belongs to one client"),
        (&with(&[&["--status", "201", "--header", "content-length: 4"], &said]), "`content-length` belongs"),
        (&with(&[&["--status", "201", "--body", "@/nowhere"], &said]), "`--body @/nowhere` cannot be read"),
        (&with(&[&["--status", "201", "--ttl", "1ms"], &said]), "the ttl must be at least 1s"),
    ] {
        let wrong = shop.asks(&with(&[&CUT_OFF, arguments])).await;
        assert_eq!(wrong.code, Some(2), "{arguments:?}: {wrong:?}");
        assert!(wrong.error.contains(words), "{words} in {}", wrong.error);
    }
    assert_eq!(shop.retry().await.rejection(), "outcome_unknown");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), [0xff, 0x00, b'\n']).expect("the body is written");
    let body = format!("@{}", file.path().display());
    let binary = shop.asks(&with(&[&CUT_OFF, &["--status", "201", "--body", &body], &said])).await;
    assert_eq!(binary.code, Some(0), "{binary:?}");
    assert_eq!(shop.retry().await.body, [0xff, 0x00, b'\n'].as_slice());
}

impl Shop {
    async fn asks_with_key(&self, arguments: &[&str], key: &str) -> crate::shop::Said {
        let mut program = Command::new(env!("CARGO_BIN_EXE_idempotent"));
        program.args(self.options()).args(arguments).env_remove("IDEMPOTENT_STORE");
        program.env("IDEMPOTENT_SEALING_KEY", key);
        run(program).await
    }
}
