//! What the engine tells of, for tests that count it; without the feature `testing` it tells nobody.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "nobody listens"))]
pub(crate) enum Event {
    /// The handler was let through.
    Executed,
    /// A recorded response was sent.
    Replayed,
    /// A rejection of this code was sent.
    Rejected(&'static str),
}
