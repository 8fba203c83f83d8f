//! Whether features go together: every two of them, by cargo-hack.

use crate::step::Failure;
use crate::workspace::Workspace;
use crate::{cargo, platforms, supply_chain};

/// All subsets would be tens of thousands. What is compiled differently depends on one feature or on a pair of them, so that
/// every pair is asked for.
const TOGETHER: u8 = 2;

pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    supply_chain::install("hack")?;
    for package in workspace.published().into_iter().filter(|package| package.features().next().is_some()) {
        let name = format!("{} with every {TOGETHER} of its features", package.name);
        let powerset = format!("--feature-powerset --depth {TOGETHER} --exclude-features default");
        let arguments = format!("hack clippy -p {} --lib {powerset} --quiet -- -D warnings", package.name);
        cargo(&name, &arguments).run()?;
    }
    platforms::check(workspace)
}
