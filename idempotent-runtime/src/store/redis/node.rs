//! The servers among which keys are spread.

/// One server of a Cluster; `None` is the only one.
pub(super) type Node = Option<(String, u16)>;
