//! How often a statement is sent again, and after which failures.

use crate::store::error::StoreError;
use crate::store::postgres::failure::{is_lost, is_read_only, is_transient, store_error};

/// How often a statement with conflicts is sent before it counts as failed.
pub(super) const ROUNDS: usize = 20;

/// Sends a statement, and sends it again after a conflict, because then it took no effect. Sends it once more if its connection was
/// lost or led to a server that was demoted.
///
/// A statement that changes something must have a token, because the lost statement may have taken effect.
pub(super) async fn retried<T, F>(statement: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    retried_after(is_lost, statement).await
}

/// Does the same as [`retried`]. `may_be_sent_again` says after which errors the statement is sent a second time.
pub(super) async fn retried_after<T, F>(
    may_be_sent_again: fn(&sqlx::Error) -> bool,
    mut statement: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let (mut round, mut may_be_lost) = (1, true);
    loop {
        match statement().await {
            Err(error) if is_transient(&error) && round < ROUNDS => round += 1,
            Err(error) if may_be_lost && (may_be_sent_again(&error) || is_read_only(&error)) => may_be_lost = false,
            done => return done.map_err(store_error),
        }
    }
}
