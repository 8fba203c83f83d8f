//! The values that a builder has collected.

use std::sync::Arc;

/// The texts and lists of a policy that a builder made. Those of an attribute are constants of the program.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) scope: Arc<str>,
    pub(super) header: String,
    pub(super) statuses: Vec<(u16, u16)>,
    pub(super) methods: Vec<&'static str>,
    pub(super) keep_headers: Vec<String>,
    pub(super) drop_headers: Vec<String>,
    pub(super) store: Option<String>,
}
