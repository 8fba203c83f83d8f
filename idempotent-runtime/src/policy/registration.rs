//! The list of every annotated handler, gathered when the program is linked.

use super::Policy;

/// One `inventory` entry per emitted handler.
#[doc(hidden)]
pub struct Registration(pub &'static Policy);

inventory::collect!(Registration);

/// Every annotated handler of the program, in the order of module, name and place.
///
/// # Examples
///
/// ```standalone_crate
/// assert_eq!(idempotent_runtime::policies().count(), 0, "this program has no annotated handler");
/// ```
pub fn policies() -> impl Iterator<Item = &'static Policy> {
    let mut policies: Vec<&'static Policy> = inventory::iter::<Registration>.into_iter().map(|entry| entry.0).collect();
    policies.sort_by_key(|policy| policy.identity());
    policies.dedup_by_key(|policy| policy.identity());
    policies.into_iter()
}
