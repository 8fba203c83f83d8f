//! What the documents say is shown by a test is shown by one.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect("the document is there")
}

/// Files of tests in backquotes, such as `tests/tests/keys.rs::a_name`, or without a name.
fn quoted(document: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let quoted = document.split('`').skip(1).step_by(2);
    let of_tests = quoted
        .filter(|name| ["tests/", "invariants/", "idempotent-cli/"].iter().any(|folder| name.starts_with(folder)));
    of_tests.map(|name| name.split_once("::").map_or((name, None), |(file, test)| (file, Some(test))))
}

/// Links such as `[a_name]: ../tests/tests/keys.rs "a_name"`.
fn linked(document: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let targets = document.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: ../").map(|(_, to)| to));
    targets.filter_map(|target| target.split_once(" \"")).map(|(file, test)| (file, test.strip_suffix('"')))
}

fn exists(file: &str, test: Option<&str>) -> bool {
    let Some(test) = test else { return root().join(file).exists() };
    let source = fs::read_to_string(root().join(file)).unwrap_or_default();
    source.contains(&format!("fn {test}("))
}

fn missing<'a>(tests: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Vec<(&'a str, Option<&'a str>)> {
    tests.filter(|(file, test)| !exists(file, *test)).collect()
}

#[test]
fn every_test_that_the_page_on_security_names_is_there() {
    let document = read("SECURITY.md");
    assert!(quoted(&document).count() > 10);
    assert_eq!(missing(quoted(&document)), []);
}

#[test]
fn every_cell_of_the_guarantees_links_to_a_test_that_is_there() {
    let document = read("docs/guarantees.md");
    assert!(linked(&document).count() > 60);
    assert_eq!(missing(linked(&document)), []);
    let labels: Vec<&str> = linked(&document).filter_map(|(_, test)| test).collect();
    let used = document.split("][").skip(1).filter_map(|rest| rest.split_once(']')).map(|(label, _)| label);
    let dangling: Vec<_> = used.filter(|label| !labels.contains(label)).collect();
    assert_eq!(dangling, Vec::<&str>::new(), "cells without a link");
}

/// What a page of the guide takes away is what the measurements compile against those crates.
#[test]
fn what_is_migrated_from_is_code_that_compiles() {
    let compiled = read("benches/src/peers.rs");
    for peer in ["rustango", "axum_idempotent", "idempotent"] {
        let page = read(&format!("idempotent-runtime/src/guide/migrating_from_{peer}.md"));
        let taken_away: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("-    ")).map(str::trim).collect();
        assert!(taken_away.len() > 1, "{peer}");
        let invented: Vec<_> = taken_away.iter().filter(|line| !compiled.contains(**line)).collect();
        assert!(invented.is_empty(), "{peer}: {invented:?}");
        let manifest = read("benches/Cargo.toml");
        let name = peer.replace('_', "-");
        let version = manifest.lines().find_map(|line| line.strip_prefix(&format!("{name} = {{ version = \"")));
        let version = version.and_then(|rest| rest.rsplit_once(".0\"")?.0.split('"').next()).expect("a version");
        assert!(page.contains(&format!("version {version}")), "{peer} is measured in version {version}");
    }
}

#[test]
fn the_readme_leads_to_every_page_that_is_there() {
    let readme = read("README.md");
    let targets = readme.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let files: Vec<_> = targets.filter(|target| !target.contains("://") && !target.starts_with('#')).collect();
    assert!(files.len() > 10 && files.contains(&"docs/cookbook.md"));
    let missing: Vec<_> = files.iter().filter(|file| !root().join(file).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
