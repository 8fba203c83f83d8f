//! The text of start-up errors, as shown by a program that returns them from `main`.

use std::error::Error;
use std::fmt;

/// Writes the message of the error and the messages of its causes. `Debug` uses this function, because `main` prints
/// `Debug` and not `Display`. A cause that only repeats the message before it is left out.
pub(crate) fn with_causes(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut said = error.to_string();
    f.write_str(&said)?;
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !said.ends_with(&reason) {
            write!(f, ": {reason}")?;
        }
        said = reason;
        cause = error.source();
    }
    Ok(())
}
