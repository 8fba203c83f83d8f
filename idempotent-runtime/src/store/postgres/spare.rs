//! The time at which an expired row is deleted.

/// How long after its expiry a row of this ttl may be deleted. A row that expires later within this time, because its handler runs
/// or its claim is renewed, needs no change in the index of the deletion.
macro_rules! spare {
    ($ttl:literal) => {
        concat!("least(", $ttl, ", 300000) * interval '1 millisecond'")
    };
}

pub(super) use spare;
