//! What the engine tells of, for tests that count it; without the feature `testing` it tells nobody.

use crate::Registry;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "nobody listens"))]
pub(crate) enum Event {
    /// The handler was let through.
    Executed,
    /// A recorded response was sent.
    Replayed,
    /// A refusal of this code was sent.
    Refused(&'static str),
}

impl Registry {
    #[cfg(feature = "testing")]
    pub(crate) fn tell(&self, scope: &str, event: Event) {
        if let Some(counts) = &self.testing().counts {
            counts.count(scope, event);
        }
    }

    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, reason = "the same call with and without listeners")]
    pub(crate) fn tell(&self, _: &str, _: Event) {}
}
