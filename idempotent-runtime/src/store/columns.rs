//! Values in the form in which the SQL stores and Redis write them.

use std::time::Duration;
#[cfg(feature = "__transactions")]
use std::time::{SystemTime, UNIX_EPOCH};

use crate::hexadecimal::hexadecimal;
use crate::key::RecordKey;
use crate::store::claim::Token;
use crate::store::entry::{DamagedEntry, Entry, Page};
use crate::store::error::StoreError;

/// Returns the time that many milliseconds after 1970, or `None` if this machine's clock cannot represent it.
#[cfg(feature = "__transactions")]
pub(super) fn time_of(unix_millis: i64) -> Option<SystemTime> {
    let distance = Duration::from_millis(unix_millis.unsigned_abs());
    if unix_millis < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

/// Returns the span in milliseconds, rounded up. The result is at most a thousand years, so that it can be added to the
/// current time without overflow and fits a timestamp.
pub(super) fn span_millis(span: Duration) -> i64 {
    const THOUSAND_YEARS: i64 = 1000 * 365 * 24 * 60 * 60 * 1000;
    i64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(THOUSAND_YEARS).min(THOUSAND_YEARS)
}

/// Formats a token as 32 hexadecimal digits.
pub(crate) fn token_text(token: Token) -> String {
    hexadecimal(&token.as_u128().to_be_bytes())
}

/// Parses a token that [`token_text`] formatted.
pub(crate) fn token_in(text: &str) -> Option<Token> {
    u128::from_str_radix(text, 16).ok().map(Token::from_u128)
}

impl Page {
    /// Adds the entry that was found under `key`. A damaged entry is listed as damaged. Any other error fails the page,
    /// because it does not concern this entry alone.
    pub(super) fn add(&mut self, key: Option<RecordKey>, found: Result<Entry, StoreError>) -> Result<(), StoreError> {
        match found {
            Ok(entry) => self.entries.push(entry),
            Err(StoreError::Damaged(reason)) => self.damaged.push(DamagedEntry { key, reason }),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
