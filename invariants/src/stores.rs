//! What the stores read from databases to which others can write.

use std::time::{Duration, UNIX_EPOCH};

use idempotent_runtime::store::{Claim, Entry, EntryState, StoreError, Token};
use idempotent_runtime::testing::decoders::{self, Row, Stored};
use idempotent_runtime::{Record, RecordKey};

use crate::source::Source;

/// A value in Redis is what the store wrote, or damaged. A record is unchanged after it was written and read back, and
/// the operators' view agrees with it.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn redis_value(bytes: &[u8]) {
    let key = RecordKey::new("charges", None, "8e03978e");
    let entry = is_sound_or_damaged(decoders::redis_entry(key.clone(), bytes, 1000, 1_795_000_000_000));
    match is_sound_or_damaged(decoders::redis_record(bytes)) {
        Some(Claim::Completed(record)) => {
            agrees(&entry.expect("a record is an entry"), &record);
            assert_eq!(in_and_out_of_redis(Token::from_u128(0), &record), record);
        }
        Some(other) => panic!("{other:?} is the script's to say"),
        // The script reads claims; the decoder only lists them.
        None => assert!(entry.is_none_or(|entry| matches!(entry.state, EntryState::Claimed { .. }))),
    }

    let mut source = Source::new(bytes);
    let (token, left) = (Token::from_u128(u128::from_le_bytes(source.array())), source.long());
    let record = source.record();
    assert_eq!(in_and_out_of_redis(token, &record), record);
    let value = decoders::redis_value(token, &record).expect("a record is written");
    agrees(&decoders::redis_entry(key, value.as_bytes(), left, 1_795_000_000_000).expect("its own value"), &record);
}

fn in_and_out_of_redis(token: Token, record: &Record) -> Record {
    let value = decoders::redis_value(token, record).expect("a record is written");
    // The scripts recognise a record and its owner only by these bytes.
    assert!(value.starts_with(&format!(r#"{{"state":"completed","token":"{:032x}","#, token.as_u128())), "{value}");
    match decoders::redis_record(value.as_bytes()) {
        Ok(Claim::Completed(record)) => record,
        other => panic!("{other:?} is not the record of {value}"),
    }
}

/// A row of a table is what the store wrote, or damaged. A record is unchanged after it was written and read back, and
/// the operators' view agrees with it.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn sql_row(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let token = Token::from_u128(u128::from_le_bytes(source.array()));
    let row = row(&mut source);
    let entry = is_sound_or_damaged(row.entry());
    match is_sound_or_damaged(row.stored()) {
        Some(Stored::Completed(record)) => {
            assert_eq!(in_and_out_of_columns(token, &record), record);
            assert_eq!(Some(i64::from(record.status.as_u16())), row.status);
            assert_eq!(record.body_bytes().map(AsRef::as_ref), row.body.as_deref());
            if let Some(entry) = entry {
                agrees(&entry, &record);
            }
        }
        Some(Stored::Claimed { fingerprint, attempt, leased, .. }) => {
            assert_eq!(row.fingerprint.map(|text| text.to_lowercase()), Some(fingerprint.to_string()));
            assert_eq!((row.attempt, row.leased), (Some(attempt.into()), Some(leased)));
        }
        None => {}
    }

    let millis = source.long();
    let mut record = source.record();
    // The columns allow more years than the text form.
    let distance = Duration::from_millis(millis.unsigned_abs());
    let time = if millis < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    record.recorded_at = time.unwrap_or(record.recorded_at);
    assert_eq!(in_and_out_of_columns(token, &record), record);
}

/// Columns, most of which are valid.
fn row(source: &mut Source<'_>) -> Row {
    let mut row = Row::completed(Token::from_u128(7), &source.record());
    row.key = Some("charges//8e03978e".to_owned());
    row.lease_left = Some(1000);
    row.leased = Some(true);
    for _ in 0..source.byte() % 4 {
        match source.byte() % 12 {
            0 => row.key = source.option(Source::text),
            1 => row.state = source.option(Source::text),
            2 => row.fingerprint = source.option(Source::text),
            3 => row.token = source.option(Source::text),
            4 => row.headers = source.option(Source::text),
            5 => row.attempt = source.option(Source::long),
            6 => row.status = source.option(Source::long),
            7 => row.lease_left = source.option(Source::long),
            8 => row.time_left = source.option(Source::long),
            9 => row.recorded_at = source.option(Source::long),
            10 => {
                row.leased = source.option(|source| source.byte() & 1 == 1);
                row.expires = row.leased;
            }
            _ => row.state = Some("claimed".to_owned()),
        }
    }
    row
}

fn in_and_out_of_columns(token: Token, record: &Record) -> Record {
    match Row::completed(token, record).stored() {
        Ok(Stored::Completed(record)) => record,
        other => panic!("{other:?} is not {record:?}"),
    }
}

fn is_sound_or_damaged<T>(decoded: Result<T, StoreError>) -> Option<T> {
    match decoded {
        Ok(sound) => Some(sound),
        Err(StoreError::Damaged(reason)) => {
            assert!(!reason.is_empty());
            None
        }
        Err(other) => panic!("{other:?} is not damage"),
    }
}

fn agrees(entry: &Entry, record: &Record) {
    let state = EntryState::Completed {
        status: record.status,
        body_bytes: record.body_bytes().map(|body| body.len() as u64),
        recorded_at: record.recorded_at,
    };
    assert_eq!((&entry.state, entry.fingerprint), (&state, record.fingerprint));
}
