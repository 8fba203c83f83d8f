//! Checks that features can be combined: every pair of them, with cargo-hack.

use crate::step::Failure;
use crate::workspace::Workspace;
use crate::{cargo, platforms, supply_chain};

/// There are tens of thousands of subsets. Conditional code depends on one feature or on a pair of features, so it is
/// enough to check every pair.
const TOGETHER: u8 = 2;

pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    supply_chain::install("hack")?;
    for package in workspace.published().into_iter().filter(|package| package.features().next().is_some()) {
        let name = format!("{} with every {TOGETHER} of its features", package.name);
        let mut powerset = format!("--feature-powerset --depth {TOGETHER}");
        for internal in package.internal_features() {
            powerset.extend([" --exclude-features ", internal]);
        }
        let arguments = format!("hack clippy -p {} --lib {powerset} --quiet -- -D warnings", package.name);
        cargo(&name, &arguments).run()?;
    }
    platforms::check(workspace)
}
