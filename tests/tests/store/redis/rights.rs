//! The rights that a user of the server needs, and the settings that the server needs. The store checks both at open.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, RedisOpenError, RedisStore, Resolution, Resolved, Store, StoreAdmin,
    StoreError, Token,
};
use idempotent_runtime::{Fingerprint, RecordKey, Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::stores::record;
use idempotent_tests::{Answer, Logs, Server, eventually};

fn request(after_crash: AfterCrash) -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_mins(2))
        .with_after_crash(after_crash)
}

/// Creates a user with these rights. Returns the server's URL for this user.
async fn url_of_user(server: &RedisServer, rights: &str) -> String {
    let () = server.command(&format!("ACL SETUSER app reset on >secret resetchannels {rights}")).await;
    server.url().replace("redis://", "redis://app:secret@")
}

#[tokio::test]
async fn resp3_server_that_evicts_is_rejected() {
    let server = RedisServer::start(&["--maxmemory 50mb", "--maxmemory-policy volatile-lru"]).await;
    let url = format!("{}?protocol=resp3", server.url());
    let error = RedisStore::connect(&url).await.expect_err("it evicts");
    assert!(matches!(&error, RedisOpenError::Evicts { policy, .. } if policy == "volatile-lru"), "{error}");
    let _: String = server.command("CONFIG SET maxmemory-policy noeviction").await;
    RedisStore::connect(&url).await.expect("it evicts nothing");
}

#[tokio::test]
async fn server_that_evicts_is_rejected_without_config() {
    let server = RedisServer::start(&["--maxmemory-policy volatile-lru"]).await;
    for protocol in ["", "?protocol=resp3"] {
        let url = format!("{}{protocol}", url_of_user(&server, "~* &* +@all -config").await);
        let error = RedisStore::connect(&url).await.expect_err("it evicts");
        assert!(matches!(&error, RedisOpenError::Evicts { policy, .. } if policy == "volatile-lru"), "{error}");
    }
}

#[tokio::test]
async fn server_of_unknown_policy_is_rejected_unless_allowed() {
    let server = RedisServer::start(&[]).await;
    for protocol in ["", "?protocol=resp3"] {
        let url = format!("{}{protocol}", url_of_user(&server, "~* &* +@all -config -info").await);
        let error = RedisStore::connect(&url).await.expect_err("it may evict");
        for part in ["maxmemory-policy", "+info", ".allow_eviction()"] {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        RedisStore::builder(&url).allow_eviction().open().await.expect("it is allowed");
    }
}

/// A server that is promoted, or that joins a Cluster, may evict keys although the other servers do not.
#[tokio::test]
async fn server_that_evicts_later_takes_no_claims_meanwhile() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("it evicts nothing");
    let key = RecordKey::new("rights", None, "k");
    let claim = async || store.claim(&key, request(AfterCrash::Rerun)).await;
    assert!(claim().await.is_ok());
    let _: String = server.command("CONFIG SET maxmemory-policy allkeys-lru").await;
    let rejected = eventually(claim, Result::is_err).await.expect_err("awaited");
    let StoreError::NotSent(cause) = rejected else { panic!("{rejected:?}") };
    let told = cause.to_string();
    assert!(told.contains("allkeys-lru") && told.contains(".allow_eviction()"), "{told}");
    let _: String = server.command("CONFIG SET maxmemory-policy noeviction").await;
    eventually(claim, Result::is_ok).await.expect("awaited");
}

#[idempotent(scope = "runs-beside-evictions", on_store_error = "run")]
async fn runs_unguarded() -> &'static str {
    "done"
}

/// The server still answers, and the record is still there, so `on_store_error = "run"` does not apply.
#[tokio::test]
async fn server_that_evicts_later_lets_nothing_run_unguarded() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("it evicts nothing");
    let app = Router::new().route("/", post(runs_unguarded)).layer(Registry::new(store).layer());
    let service = Server::start(app).await;
    let send = async || service.post_with_key("/", "k").await;
    assert_eq!(send().await.text(), "done");
    let _: String = server.command("CONFIG SET maxmemory-policy allkeys-lru").await;
    let rejected = eventually(send, |answer| !answer.is_replay()).await;
    assert_eq!(rejected.rejection(), "store_unavailable");
    let _: String = server.command("CONFIG SET maxmemory-policy noeviction").await;
    assert_eq!(eventually(send, Answer::is_replay).await.text(), "done");
}

#[tokio::test]
async fn user_without_scripts_is_rejected_at_open() {
    let server = RedisServer::start(&[]).await;
    let url = url_of_user(&server, "~* &* +@all -@scripting").await;
    let error = RedisStore::connect(&url).await.expect_err("it could record nothing");
    for part in ["EVAL", "ACL SETUSER", "+evalsha", "~idempotency:*"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    assert_eq!(server.command::<u64>("DBSIZE").await, 0);
}

fn page(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).expect("the page is there")
}

/// Returns the rights that the guide and the page for operators name, for the default prefix.
fn documented() -> Vec<String> {
    let rights = |path| {
        let page = page(path);
        let line = page.lines().find(|line| line.starts_with("ACL SETUSER ")).expect("the page tells the rights");
        let rights = line.split(' ').filter(|word| word.starts_with(['~', '&', '+']));
        rights.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let of_guide = rights("idempotent-runtime/src/guide/choosing_a_store.md");
    assert_eq!(rights("docs/operations/redis.md"), of_guide);
    of_guide
}

/// Returns the number of connections to the server, without the one that asks for it.
async fn connections(server: &RedisServer) -> usize {
    server.command::<String>("CLIENT LIST").await.lines().count() - 1
}

#[tokio::test]
async fn connections_of_a_store_are_those_of_the_page() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let _ = store.claim(&RecordKey::new("rights", None, "k"), request(AfterCrash::Rerun)).await.expect("it claims");
    eventually(async || connections(&server).await, |&all| all == 1).await;
    let _ = store.list(None, 10).await.expect("it lists");
    eventually(async || connections(&server).await, |&all| all == 2).await;
    let key = RecordKey::new("rights", None, "k");
    let mut waiting = std::pin::pin!(store.changed(&key));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    eventually(async || connections(&server).await, |&all| all == 3).await;
}

#[tokio::test]
async fn commands_of_the_page_for_operators_are_answered() {
    let server = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let _ = store.claim(&RecordKey::new("charges", None, "k"), request(AfterCrash::Reject)).await.expect("it claims");
    let address = server.address();
    let (_, port) = address.rsplit_once(':').expect("a port");
    let page = page("docs/operations/redis.md");
    let commands: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("redis-cli ")).collect();
    assert!(commands.len() > 5);
    for line in commands {
        let command = line.split(" # ").next().unwrap_or_default();
        let run = Command::new("redis-cli").args(["-e", "-p", port]).args(command.split_whitespace()).output();
        let run = run.expect("redis-cli starts");
        assert!(run.status.success(), "{command}: {}", String::from_utf8_lossy(&run.stdout));
        if command.contains("unknown_outcomes") || command.contains("--scan") {
            assert!(!run.stdout.is_empty() && run.stdout != b"0\n", "{command}");
        }
    }
}

async fn claims_records_and_lists(store: &RedisStore) {
    for (number, after_crash) in [AfterCrash::Rerun, AfterCrash::Reject].into_iter().enumerate() {
        let (key, claim) = (RecordKey::new("rights", None, &format!("k{number}")), request(after_crash));
        assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
        assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
        assert!(matches!(store.claim(&key, request(after_crash)).await, Ok(Claim::InFlight { .. })));
        assert_eq!(store.renew(&key, claim.token, claim.lease).await.expect("it renews"), Held::Yes);
        assert_eq!(store.complete(&key, claim.token, record("paid"), claim.ttl).await.expect("it records"), Held::Yes);
        assert_eq!(store.complete(&key, claim.token, record("paid"), claim.ttl).await.expect("it records"), Held::Yes);
        assert!(store.get(&key).await.expect("it looks").is_some());
        assert_eq!(store.list(None, 10).await.expect("it lists").entries.len(), 1);
        assert!(store.purge(&key).await.expect("it purges"));
        let (key, claim) = (RecordKey::new("rights", None, "given-back"), request(after_crash));
        assert_eq!(store.release(&key, claim.token).await.expect("it gives back"), Held::No);
        assert_eq!(store.claim(&key, request(after_crash)).await.expect("it claims"), Claim::Acquired { attempt: 1 });
        assert_eq!(store.unknown_outcomes().await.expect("it counts").len(), 0);
        assert!(store.purge(&key).await.expect("it purges"));
        for resolution in [Resolution::NotExecuted, Resolution::executed(record("paid"), claim.ttl)] {
            let claim = request(after_crash);
            assert_eq!(store.claim(&key, claim).await.expect("it claims"), Claim::Acquired { attempt: 1 });
            assert_eq!(store.renew(&key, claim.token, Duration::ZERO).await.expect("it renews"), Held::Yes);
            let resolved = store.resolve(&key, claim.token, resolution).await;
            assert_eq!(resolved.expect("it resolves"), Resolved::Yes);
        }
        assert!(store.purge(&key).await.expect("it purges"));
    }
}

#[tokio::test]
async fn user_of_the_documented_rights_does_everything() {
    let server = RedisServer::start(&[]).await;
    let logs = Logs::collect();
    for protocol in ["", "?protocol=resp3"] {
        let url = format!("{}{protocol}", url_of_user(&server, &documented().join(" ")).await);
        let store = RedisStore::connect(&url).await.expect("the rights are enough");
        claims_records_and_lists(&store).await;
        // This user also receives the message that wakes a waiter.
        let (key, claim) = (RecordKey::new("rights", None, "woken"), request(AfterCrash::Rerun));
        let _ = store.claim(&key, claim).await.expect("it claims");
        let mut heard = std::pin::pin!(store.changed(&key));
        let heard = async || futures_util::poll!(heard.as_mut()).is_ready();
        eventually(heard, |&is_heard| is_heard).await;
        assert!(store.purge(&key).await.expect("it purges"));
    }
    assert_eq!(logs.of_level("WARN"), Vec::<String>::new());
    let denied: Vec<redis::Value> = server.command("ACL LOG").await;
    assert!(denied.is_empty(), "nothing else is tried: {denied:?}");
}

#[tokio::test]
async fn each_documented_right_is_needed_and_named_at_open() {
    let server = RedisServer::start(&[]).await;
    let rights = documented();
    assert!(rights.len() > 10, "{rights:?}");
    for missing in &rights {
        let others: Vec<_> = rights.iter().filter(|right| *right != missing).cloned().collect();
        let url = url_of_user(&server, &others.join(" ")).await;
        let logs = Logs::collect();
        let opened = RedisStore::connect(&url).await;
        match missing.as_str() {
            // Without this right, the store gets the eviction policy from `INFO`.
            "+config|get" => drop(opened.expect("it is optional")),
            "+info" | "+publish" | "+subscribe" | "&idempotency:ended" => {
                let store = opened.unwrap_or_else(|error| panic!("{missing}: {error}"));
                let key = RecordKey::new("rights", None, "k");
                let mut heard = std::pin::pin!(store.changed(&key));
                assert!(futures_util::poll!(heard.as_mut()).is_pending());
                eventually(async || logs.of_level("WARN"), |warnings| !warnings.is_empty()).await;
                assert!(
                    logs.of_level("WARN")[0].contains(if missing == "+info" { "INFO" } else { missing }),
                    "{missing}"
                );
            }
            _ => {
                let error = opened.expect_err(missing).to_string();
                assert!(error.contains(missing) && error.contains("ACL SETUSER"), "{missing}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn user_of_one_prefix_reaches_every_name_of_the_store() {
    let server = RedisServer::start(&[]).await;
    for prefix in ["shop:", "a{b:", "{app}:", "{}:", "{", ""] {
        let pattern = prefix.replace('{', "\\{");
        let url = url_of_user(&server, &format!("~{pattern}* &* +@all")).await;
        let store = RedisStore::builder(&url).prefix(prefix).open().await.expect("the store opens");
        claims_records_and_lists(&store).await;
    }
}
