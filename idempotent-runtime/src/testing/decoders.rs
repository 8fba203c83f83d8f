//! The functions of the stores and the engine that read foreign bytes, for the targets of the fuzzer.

#[cfg(feature = "redis")]
pub use crate::testing::decoders::redis::{redis_entry, redis_record, redis_value};
#[cfg(feature = "__transactions")]
pub use crate::testing::decoders::sql::{Row, Stored};

use http::HeaderMap;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::body::{BodyForm, digest_of_body};
use crate::fingerprint::builder::{FingerprintBuilder, PartDigest};
use crate::fingerprint::salted::Salt;
use crate::key::RecordKey;

/// Returns the fingerprint of a request of which only the body counts.
pub fn body_fingerprint(headers: &HeaderMap, body: &[u8]) -> Fingerprint {
    fingerprint_of("", Some(digest_of_body(headers, body, BodyForm::Bytes)))
}

/// Returns the fingerprint of such a request under `fingerprint = json`.
pub fn json_fingerprint(headers: &HeaderMap, body: &[u8]) -> Fingerprint {
    fingerprint_of("", Some(digest_of_body(headers, body, BodyForm::Json)))
}

/// Returns the fingerprint under this key of a request of which nothing counts: `fingerprint = none`, and no
/// credentials. The registry has no secret.
pub fn fingerprint_of_nothing(key: &RecordKey) -> Fingerprint {
    fingerprint_of(key.as_str(), None)
}

fn fingerprint_of(record_key: &str, body: Option<PartDigest>) -> Fingerprint {
    let mut builder = FingerprintBuilder::new();
    if let Some(body) = body {
        builder.body(body);
    }
    Salt::unkeyed(record_key).fingerprint(&builder.finish())
}

#[cfg(feature = "redis")]
mod redis {
    use crate::key::RecordKey;
    use crate::record::Record;
    use crate::store::claim::{Claim, Token};
    use crate::store::entry::Entry;
    use crate::store::error::StoreError;
    use crate::store::redis::value;

    /// Returns the value that the store writes for a record.
    ///
    /// # Errors
    ///
    /// If the record cannot be written as JSON.
    pub fn redis_value(token: Token, record: &Record) -> Result<String, StoreError> {
        value::completed(token, record)
    }

    /// Reads a value as a claim does.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if no store has written the value.
    pub fn redis_record(value: &[u8]) -> Result<Claim, StoreError> {
        value::existing(value)
    }

    /// Reads a value as an operator does.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if no store has written the value.
    pub fn redis_entry(key: RecordKey, value: &[u8], left: i64, now: i64) -> Result<Entry, StoreError> {
        value::entry(key, value, left, now)
    }
}

#[cfg(feature = "__transactions")]
mod sql {
    use std::fmt;

    use crate::fingerprint::Fingerprint;
    use crate::record::HeadersText;
    use crate::record::Record;
    use crate::record::unix_millis;
    use crate::store::claim::Token;
    use crate::store::claim_decision::{ExistingClaim, StoredState};
    use crate::store::columns::token_text;
    use crate::store::entry::Entry;
    use crate::store::error::StoreError;
    use crate::store::row::Columns;

    /// A row as the statements of both SQL stores return it. `None` is NULL.
    #[derive(Clone, Debug, Default)]
    pub struct Row {
        pub key: Option<String>,
        pub state: Option<String>,
        pub fingerprint: Option<String>,
        pub token: Option<String>,
        pub headers: Option<String>,
        pub attempt: Option<i64>,
        pub status: Option<i64>,
        pub lease_left: Option<i64>,
        pub time_left: Option<i64>,
        pub recorded_at: Option<i64>,
        pub leased: Option<bool>,
        pub expires: Option<bool>,
        pub body: Option<Vec<u8>>,
    }

    /// The result of reading a row as a claim does.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Stored {
        Claimed { fingerprint: Fingerprint, token: Token, attempt: u32, leased: bool, expires: bool },
        Completed(Record),
    }

    impl Row {
        /// Returns the columns that a store writes for a record.
        pub fn completed(token: Token, record: &Record) -> Self {
            let headers = serde_json::to_string(&HeadersText::of(record));
            Self {
                state: Some("completed".to_owned()),
                fingerprint: Some(record.fingerprint.to_string()),
                token: Some(token_text(token)),
                headers: Some(headers.expect("names and values are text")),
                attempt: Some(1),
                status: Some(record.status.as_u16().into()),
                time_left: Some(1),
                recorded_at: Some(unix_millis(record.recorded_at)),
                body: record.body_bytes().map(|body| body.to_vec()),
                ..Self::default()
            }
        }

        /// Reads the row as a claim does.
        ///
        /// # Errors
        ///
        /// [`StoreError::Damaged`] if no store has written the row.
        pub fn stored(&self) -> Result<Stored, StoreError> {
            Ok(match StoredState::from_row(self)? {
                StoredState::Claimed(ExistingClaim { token, fingerprint, attempt, leased, expires }) => {
                    Stored::Claimed { fingerprint, token, attempt, leased, expires }
                }
                StoredState::Completed(record) => Stored::Completed(record),
            })
        }

        /// Reads the row as an operator does.
        ///
        /// # Errors
        ///
        /// [`StoreError::Damaged`] if no store has written the row.
        pub fn entry(&self) -> Result<Entry, StoreError> {
            Entry::from_row(self)
        }
    }

    impl Columns for Row {
        fn text(&self, name: &str) -> Result<Option<&str>, StoreError> {
            let text = match name {
                "key" => &self.key,
                "state" => &self.state,
                "fingerprint" => &self.fingerprint,
                "token" => &self.token,
                "headers" => &self.headers,
                other => return Err(self.damaged(other)),
            };
            Ok(text.as_deref())
        }

        fn flag(&self, name: &str) -> Result<Option<bool>, StoreError> {
            Ok(if name == "leased" { self.leased } else { self.expires })
        }

        fn number(&self, name: &str) -> Result<Option<i64>, StoreError> {
            Ok(if name == "attempt" { self.attempt } else { self.status })
        }

        fn long(&self, name: &str) -> Result<Option<i64>, StoreError> {
            Ok(match name {
                "lease_left" => self.lease_left,
                "time_left" => self.time_left,
                "recorded_at" => self.recorded_at,
                _ => self.body.as_ref().and_then(|body| i64::try_from(body.len()).ok()),
            })
        }

        fn bytes(&self, _: &str) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.body.clone())
        }

        fn damaged(&self, reason: impl fmt::Display) -> StoreError {
            StoreError::damaged(reason)
        }
    }
}
