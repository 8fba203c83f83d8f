//! What must hold before a version is published; publishes nothing. docs/releasing.md has the steps around it.

use std::fs;

use crate::step::Failure;
use crate::workspace::{Workspace, root};
use crate::{docs_rs, features, package, public_api, rust_version};

const NAME: &str = "the changelog";

pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    tells_of_this_version(workspace)?;
    rust_version::check(workspace)?;
    public_api::check(workspace)?;
    docs_rs::check(workspace)?;
    features::check(workspace)?;
    package::run(workspace)?;
    println!("\nThis may be published: docs/releasing.md says how.");
    Ok(())
}

/// A dated chapter for the version of each package.
pub(crate) fn tells_of_this_version(workspace: &Workspace) -> Result<(), Failure> {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).map_err(|error| Failure::of(NAME, error))?;
    for package in workspace.published() {
        let chapter = format!("## [{}] - ", package.version);
        if !changelog.lines().any(|line| line.starts_with(&chapter)) {
            let found = format!(
                "{} is {}, and CHANGELOG.md has no chapter `{chapter}YYYY-MM-DD`",
                package.name, package.version
            );
            return Err(Failure::of(NAME, format!("{found}: give it what stands under `## [Unreleased]`")));
        }
    }
    Ok(())
}
