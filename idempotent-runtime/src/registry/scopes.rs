//! Handlers whose keys would meet.

use std::collections::HashMap;

use crate::policy::Policy;

/// The handlers that have the scope of one before them, each with that one, unless both say `shared_scope`.
///
/// Their stores do not count: two names may stand for one store, and operators, metrics and limits know a handler by its scope.
pub(super) fn conflicts(
    policies: impl Iterator<Item = &'static Policy>,
) -> impl Iterator<Item = (&'static Policy, &'static Policy)> {
    let mut by_scope = HashMap::new();
    policies.filter_map(move |policy| {
        let first = *by_scope.entry(policy.scope()).or_insert(policy);
        let are_shared = first.shared_scope() && policy.shared_scope();
        (!std::ptr::eq(first, policy) && !are_shared).then_some((first, policy))
    })
}
