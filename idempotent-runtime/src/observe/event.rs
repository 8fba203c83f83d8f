//! The events that a registry reports to its observer. Only the feature `testing` has an observer.

/// Receives the events of one registry.
pub(crate) trait Observer: Send + Sync + 'static {
    fn observe(&self, scope: &str, event: Event);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The handler was run.
    Executed,
    /// A recorded response was sent.
    Replayed,
    /// A rejection of this code was sent.
    Rejected(&'static str),
}
