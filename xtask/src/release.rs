//! Checks what must hold before a version is published. Publishes nothing: docs/releasing.md describes the steps around
//! it.

use std::fs;

use crate::step::Failure;
use crate::workspace::{Workspace, root};
use crate::{docs_rs, features, package, public_api, rust_version};

const NAME: &str = "the changelog";

pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    changelog_has_a_date(workspace)?;
    rust_version::check(workspace)?;
    public_api::check(workspace)?;
    docs_rs::check(workspace)?;
    features::check(workspace)?;
    package::run(workspace)?;
    println!("\nThis may be published: docs/releasing.md says how.");
    Ok(())
}

fn changelog() -> Result<String, Failure> {
    fs::read_to_string(root().join("CHANGELOG.md")).map_err(|error| Failure::of(NAME, error))
}

/// Checks that the changelog has a dated chapter for the version of each package.
fn changelog_has_a_date(workspace: &Workspace) -> Result<(), Failure> {
    let changelog = changelog()?;
    for package in workspace.published() {
        if !has_dated_chapter(&changelog, &package.version) {
            let chapter = format!("## [{}] - ", package.version);
            let found = format!(
                "{} is {}, and CHANGELOG.md has no chapter `{chapter}YYYY-MM-DD`",
                package.name, package.version
            );
            return Err(Failure::of(NAME, format!("{found}: give it the lines of `## [Unreleased]`")));
        }
    }
    Ok(())
}

/// Checks that the changelog has a chapter for the version of each package: a dated chapter, or the chapter of
/// unreleased changes.
pub(crate) fn changelog_has_a_chapter(workspace: &Workspace) -> Result<(), Failure> {
    let changelog = changelog()?;
    let is_told = |version: &str| has_dated_chapter(&changelog, version) || is_unreleased(&changelog, version);
    match workspace.published().into_iter().find(|package| !is_told(&package.version)) {
        Some(package) => Err(Failure::of(
            NAME,
            format!("CHANGELOG.md says nothing of {} {}: add it to `## [Unreleased]`", package.name, package.version),
        )),
        None => Ok(()),
    }
}

fn has_dated_chapter(changelog: &str, version: &str) -> bool {
    let chapter = format!("## [{version}] - ");
    let dates = changelog.lines().filter_map(|line| line.strip_prefix(&chapter));
    dates.into_iter().any(|date| date.len() == "YYYY-MM-DD".len() && date.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether the chapter of unreleased changes names this version.
fn is_unreleased(changelog: &str, version: &str) -> bool {
    let chapter = changelog.split("\n## ").find(|chapter| chapter.starts_with("[Unreleased]"));
    chapter.is_some_and(|chapter| chapter.contains(version))
}

#[cfg(test)]
mod tests {
    use super::{has_dated_chapter, is_unreleased};

    #[test]
    fn changelog_names_each_version_once_with_or_without_a_date() {
        let before = "# Changelog\n\n## [Unreleased]\n\nThis is what 0.1.0 has.\n";
        assert!(is_unreleased(before, "0.1.0") && !has_dated_chapter(before, "0.1.0"));
        let after = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2027-01-31\n\nThis is what 0.1.0 has.\n";
        assert!(!is_unreleased(after, "0.1.0") && has_dated_chapter(after, "0.1.0"));
        assert!(!has_dated_chapter("## [0.1.0] - unreleased", "0.1.0"));
    }
}
