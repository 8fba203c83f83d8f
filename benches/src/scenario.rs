//! The kinds of requests.

/// A kind of request, by what the guard does with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A key that was not used before.
    First,
    /// A key whose response is recorded.
    Replay,
    /// A request without a key.
    NoKey,
    /// A key whose handler is running.
    RejectedDuplicate,
}

impl Scenario {
    /// All scenarios.
    pub const ALL: [Self; 4] = [Self::First, Self::Replay, Self::NoKey, Self::RejectedDuplicate];

    /// The name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first execution",
            Self::Replay => "replay",
            Self::NoKey => "no key",
            Self::RejectedDuplicate => "rejected duplicate",
        }
    }
}

/// A key in the format of a UUID. The same two numbers give the same key.
pub fn key(series: usize, number: usize) -> String {
    format!("8e03978e-40d5-43dd-bc93-{:04x}{number:08x}", series % 0x1_0000)
}
