//! Keeps a connection that only receives.

use std::time::Duration;

use crate::backoff::Backoff;

/// A connection over which a server reports changes.
pub(crate) trait Subscription: Send + Sync + 'static {
    /// Connects, and receives until the connection is lost. Returns whether it was connected.
    fn receive(&self) -> impl Future<Output = bool> + Send;
}

/// Connects, and connects again each time the connection is lost. Never returns.
///
/// The pauses between failed attempts grow from 100 ms to 5 s.
pub(crate) async fn keep_connected(subscription: impl Subscription) {
    let beginning = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut backoff = beginning;
    loop {
        if subscription.receive().await {
            backoff = beginning;
        }
        backoff.wait().await;
    }
}
