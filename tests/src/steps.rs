//! What the tests of steps and their server processes tell each other.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The header by which a request names the place at which its server dies.
pub const DIE_AT: &str = "x-die-at";

/// The header by which a request names the place at which its handler waits for the file [`go`].
pub const WAIT_AT: &str = "x-wait-at";

/// What a handler that waits writes among the effects.
pub const WAITS: &str = "waits";

/// The file that lets a handler with this key go on, beside that of the effects.
pub fn go(effects: &Path, key: &str) -> PathBuf {
    effects.with_file_name(format!("go-{key}"))
}

/// A place in a handler of two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the first step.
    BeforeReserve,
    /// The first step has had its effect, and its result is not recorded.
    InReserve,
    /// It is recorded.
    Reserved,
    /// The second step has had its effect, and its result is not recorded.
    InCharge,
    /// It is recorded, and the handler has not answered.
    Charged,
}

impl Moment {
    /// In the order in which a request passes them.
    pub const ALL: [Self; 5] = [Self::BeforeReserve, Self::InReserve, Self::Reserved, Self::InCharge, Self::Charged];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Moment {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|place| place.to_string() == text).ok_or(())
    }
}
