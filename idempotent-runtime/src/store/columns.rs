//! Values as the SQL stores write them.

use std::time::Duration;
#[cfg(feature = "__transactions")]
use std::time::{SystemTime, UNIX_EPOCH};

use crate::key::RecordKey;
use crate::store::claim::Token;
use crate::store::entry::{DamagedEntry, Entry, Page};
use crate::store::error::StoreError;

/// The time of that many milliseconds since 1970; `None` where this machine's clock does not reach.
#[cfg(feature = "__transactions")]
pub(super) fn time_of(unix_millis: i64) -> Option<SystemTime> {
    let distance = Duration::from_millis(unix_millis.unsigned_abs());
    if unix_millis < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

/// A span that can be added to now without overflow, and that a timestamp takes; a part of a millisecond counts as a
/// whole one.
pub(super) fn span_millis(span: Duration) -> i64 {
    const THOUSAND_YEARS: i64 = 1000 * 365 * 24 * 60 * 60 * 1000;
    i64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(THOUSAND_YEARS).min(THOUSAND_YEARS)
}

/// 32 hexadecimal digits.
pub(crate) fn token_text(token: Token) -> String {
    format!("{:032x}", token.as_u128())
}

/// The token back.
pub(crate) fn token_in(text: &str) -> Option<Token> {
    u128::from_str_radix(text, 16).ok().map(Token::from_u128)
}

impl Page {
    /// Takes what was found under `key`. Anything but damage fails the page: it says nothing of this entry alone.
    pub(super) fn add(&mut self, key: Option<RecordKey>, found: Result<Entry, StoreError>) -> Result<(), StoreError> {
        match found {
            Ok(entry) => self.entries.push(entry),
            Err(StoreError::Damaged(reason)) => self.damaged.push(DamagedEntry { key, reason }),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
