//! The messages between the tests of steps and their server processes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A request names the place at which its server dies in this header.
pub const DIE_AT: &str = "x-die-at";

/// A request names the place at which its handler waits for the file [`go`] in this header.
pub const WAIT_AT: &str = "x-wait-at";

/// A handler that waits writes this line among the effects.
pub const WAITS: &str = "waits";

/// The file that lets a handler with this key continue. It is in the folder of the effects' file.
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
    /// The result of the first step is recorded.
    Reserved,
    /// The second step has had its effect, and its result is not recorded.
    InCharge,
    /// The result of the second step is recorded, and the handler has not answered.
    Charged,
}

impl Moment {
    /// All places, in the order in which a request passes them.
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
