//! The policies of the layers that the program has created, for operators and tests. The linker cannot gather them.

use std::sync::{Arc, Weak};

use crate::policy::Policy;
use crate::sync::{Mutex, lock};

static MADE: Mutex<Vec<Weak<Policy>>> = Mutex::new(Vec::new());

pub(super) fn add(policy: &Arc<Policy>) {
    let mut made = lock(&MADE);
    made.retain(|policy| policy.strong_count() > 0);
    made.push(Arc::downgrade(policy));
}

/// Returns the policies of the layers that still exist.
pub(crate) fn policies_of_layers() -> Vec<Arc<Policy>> {
    lock(&MADE).iter().filter_map(Weak::upgrade).collect()
}
