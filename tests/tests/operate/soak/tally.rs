//! The counts of the clients.

use std::iter::Sum;
use std::ops::Add;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Keys. Each of them got an answer in the end.
    pub(crate) keys: u64,
    pub(crate) requests: u64,
    pub(crate) replays: u64,
    /// Rejections because the first request still ran.
    pub(crate) in_flight: u64,
    /// Rejections because the store was full or too slow.
    pub(crate) unavailable: u64,
    /// Connections that the client closed in the middle of a request or before its answer.
    pub(crate) left: u64,
    /// Keys that took longer than a record lives. They were allowed to run again.
    pub(crate) overdue: u64,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            keys: self.keys + other.keys,
            requests: self.requests + other.requests,
            replays: self.replays + other.replays,
            in_flight: self.in_flight + other.in_flight,
            unavailable: self.unavailable + other.unavailable,
            left: self.left + other.left,
            overdue: self.overdue + other.overdue,
        }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), Add::add)
    }
}
