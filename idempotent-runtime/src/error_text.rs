//! Errors of start-up, as a program prints them that returns them from `main`.

use std::error::Error;
use std::fmt;

/// The message and those of its causes, for `Debug`: `main` prints that and not `Display`.
pub(crate) fn with_causes(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}
