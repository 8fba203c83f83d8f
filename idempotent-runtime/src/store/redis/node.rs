//! The servers among which keys are spread.

/// A server of a Cluster, or `None` for the only server.
pub(super) type Node = Option<(String, u16)>;
