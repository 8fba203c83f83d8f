//! When an expired row is deleted.

/// How much later than it expires a row of this ttl may be deleted: so long its handler may run, or its claim be renewed, before
/// the index of what is to be deleted must be told.
macro_rules! spare {
    ($ttl:literal) => {
        concat!("least(", $ttl, ", 300000) * interval '1 millisecond'")
    };
}

pub(super) use spare;
