//! The tokens that were released without a claim. A claim by such a token may still be on its way, and must fail.

use std::time::Duration;
#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::{AtomicBool, Ordering},
};

#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
use crate::store::claim::Token;
use crate::store::error::StoreError;
#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
use crate::sync::tokio::time::Instant;
#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
use crate::sync::{KeyHasher, Mutex, lock};

/// The time for which such a token is remembered. No network or server keeps a sent call for longer.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
#[error("the claim was given back before it arrived")]
struct GivenBack;

/// Returns the error of a claim by such a token.
pub(super) fn given_back() -> StoreError {
    StoreError::unavailable(GivenBack)
}

/// The tokens that a store remembers in this process.
#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
#[derive(Default)]
pub(super) struct RememberedTokens {
    /// Whether there is any token. If not, a claim takes no lock.
    has_any: AtomicBool,
    tokens: Mutex<Tokens>,
}

#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
#[derive(Default)]
struct Tokens {
    all: HashSet<Token, KeyHasher>,
    by_age: VecDeque<(Instant, Token)>,
}

#[cfg(any(feature = "memory", feature = "redis", feature = "sqlite"))]
impl RememberedTokens {
    pub(super) fn remember(&self, token: Token) {
        let (mut tokens, now) = (lock(&self.tokens), Instant::now());
        while let Some(&(since, oldest)) = tokens.by_age.front()
            && now.saturating_duration_since(since) > REMEMBERED
        {
            tokens.by_age.pop_front();
            tokens.all.remove(&oldest);
        }
        if tokens.all.insert(token) {
            tokens.by_age.push_back((now, token));
        }
        self.has_any.store(true, Ordering::SeqCst);
    }

    pub(super) fn contains(&self, token: Token) -> bool {
        self.has_any.load(Ordering::SeqCst) && lock(&self.tokens).all.contains(&token)
    }

    /// Fails if a claim by this token must not be granted.
    #[cfg(any(feature = "memory", feature = "sqlite"))]
    pub(super) fn check(&self, token: Token) -> Result<(), StoreError> {
        if self.contains(token) { Err(given_back()) } else { Ok(()) }
    }
}
