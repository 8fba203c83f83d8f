//! What fails one operation of a batch does not fail the others.

use idempotent_runtime::store::{Held, RedisStore, Store, StoreError};
use idempotent_tests::redis::RedisServer;

use super::{CALLERS, answers, assert_claimed, claim_all, complete_all, connect, is_first_attempt, name_of, requests};

/// A name has a list, another one has text that cannot be read, and a record is too long for the server.
#[tokio::test]
async fn poisoned_entry_fails_no_other_of_its_batch() {
    let server = RedisServer::start(&["--proto-max-bulk-len 1mb"]).await;
    let store = connect(&server).await;
    let _: usize = server.command(&format!("RPUSH {} poison", name_of("poison", 7))).await;
    let _: String = server.command(&format!("SET {} poison", name_of("poison", 9))).await;
    let requests = requests();
    for (number, claim) in answers(claim_all(&store, "poison", &requests)).await.iter().enumerate() {
        match claim {
            Err(StoreError::Damaged(_)) => assert!([7, 9].contains(&number)),
            claim => assert!(![7, 9].contains(&number) && is_first_attempt(claim), "{number}: {claim:?}"),
        }
    }
    let mut completing = complete_all(&store, "poison", &requests[..20], 10);
    let (too_long, mine) = (requests[20], store.clone());
    completing.push(tokio::spawn(async move {
        let record = idempotent_tests::stores::record(vec![b'x'; 2 << 20]);
        mine.complete(&super::key("poison", 20), too_long.token, record, too_long.ttl).await
    }));
    let rest = complete_all(&store, "poison", &requests, 10);
    for (number, held) in answers(completing).await.iter().chain(&answers(rest).await[21..]).enumerate() {
        match held {
            Err(StoreError::Damaged(_)) => assert_eq!(number, 7),
            Err(StoreError::RecordRejected(_)) => assert_eq!(number, 20),
            Ok(Held::No) => assert_eq!(number, 9),
            held => assert!(![7, 9, 20].contains(&number) && matches!(held, Ok(Held::Yes)), "{number}: {held:?}"),
        }
    }
}

/// Redis rejects a script as a whole if the user has no right to one of its names.
#[tokio::test]
async fn forbidden_name_fails_no_other_of_its_batch() {
    let server = RedisServer::start(&[]).await;
    let setup = connect(&server).await;
    let requests = requests();
    assert_claimed(&setup, "forbidden", &requests).await;
    // All names of the store but those with a 7 at the end.
    let names = (0..10).filter(|digit| *digit != 7).map(|digit| format!("~*forbidden*{digit}"));
    let rules = names.collect::<Vec<_>>().join(" ");
    let user = format!("ACL SETUSER limited on >secret ~idempotency:trial:* ~idempotency:given-back:* {rules}");
    let _: String = server.command(&format!("{user} ~idempotency:claims ~idempotency:unknown_outcomes &* +@all")).await;
    let store =
        RedisStore::connect(&server.url().replace("redis://", "redis://limited:secret@")).await.expect("it opens");
    for (number, held) in answers(complete_all(&store, "forbidden", &requests, 10)).await.iter().enumerate() {
        match held {
            Err(StoreError::Unavailable(_)) => assert_eq!(number % 10, 7),
            held => assert!(number % 10 != 7 && matches!(held, Ok(Held::Yes)), "{number}: {held:?}"),
        }
    }
    for (number, claim) in answers(claim_all(&store, "forbidden", &super::requests())).await.iter().enumerate() {
        assert_eq!(claim.is_err(), number % 10 == 7, "{number}: {claim:?}");
    }
}

/// A full server rejects new claims, and accepts the records of all claims that it granted.
#[tokio::test]
async fn full_server_records_all_claims_of_a_batch() {
    let server = RedisServer::start(&[]).await;
    if server.version().await < 7 {
        return;
    }
    let store = connect(&server).await;
    let requests = requests();
    assert_claimed(&store, "granted", &requests).await;
    let _: String = server.command("CONFIG SET maxmemory 1").await;
    let claims = answers(claim_all(&store, "rejected", &super::requests())).await;
    assert!(claims.iter().all(|claim| matches!(claim, Err(StoreError::Full))), "{claims:?}");
    let completed = answers(complete_all(&store, "granted", &requests, 10)).await;
    assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
    assert_eq!(completed.len(), CALLERS);
}
