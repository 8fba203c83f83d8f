//! What the guard costs, against the bare handler, its peers and the limits of the engines below it.

#[cfg(feature = "peers")]
pub mod contenders;
pub mod report;
