//! Finds handlers whose keys would collide.

use std::collections::HashMap;

use crate::policy::Policy;

/// Returns the handlers that have the scope of an earlier one, each with that earlier one, unless both say
/// `shared_scope`.
///
/// Their stores do not matter: two names may refer to one store, and operators, metrics and limits identify a handler
/// by its scope.
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
