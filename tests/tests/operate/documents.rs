//! What the documents say is shown by a test is shown by one.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect("the document is there")
}

/// Files of tests in backquotes, such as `tests/tests/request/keys.rs::a_name`, or without a name.
fn quoted(document: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let quoted = document.split('`').skip(1).step_by(2);
    let of_tests = quoted
        .filter(|name| ["tests/", "invariants/", "idempotent-cli/"].iter().any(|folder| name.starts_with(folder)));
    of_tests.map(|name| name.split_once("::").map_or((name, None), |(file, test)| (file, Some(test))))
}

/// Links such as `[a_name]: ../tests/tests/request/keys.rs "a_name"`.
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

#[test]
fn the_readme_stays_short() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 1200, "{words} words: what is said in detail has its home in the guide");
}

/// What crates.io shows is a part of the README, not a second one; only its links are others.
#[test]
fn the_readme_of_the_crate_is_a_part_of_the_readme() {
    let (whole, part) = (read("README.md"), read("idempotent-runtime/README.md"));
    let (said, links) = part.split_once("The [documentation]").expect("the links come last");
    assert!(links.contains("docs.rs"));
    let invented: Vec<_> = said.lines().skip(1).filter(|line| !whole.lines().any(|known| known == *line)).collect();
    assert!(said.lines().count() > 40 && invented.is_empty(), "{invented:?}");
}

/// The folders of the test programs, and those in them.
fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).expect("the folder is there").flatten().map(|entry| entry.path());
    let within = entries.filter(|path| path.is_dir()).flat_map(|folder| folders(&folder));
    within.chain([of.to_owned()]).collect()
}

/// A file that no module names is no error of the compiler: its tests are not there.
#[test]
fn every_test_file_belongs_to_one_of_twelve_programs() {
    let (tests, manifest) = (root().join("tests/tests"), read("tests/Cargo.toml"));
    let page = read("tests/README.md");
    let (mut programs, mut lost) = (Vec::new(), Vec::new());
    for folder in folders(&tests) {
        let sources = ["main.rs", "mod.rs"].map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default());
        let files = fs::read_dir(&folder).expect("the folder is there").flatten().map(|entry| entry.path());
        for file in files.filter(|path| path != &tests.join("process")) {
            let path = file.strip_prefix(&tests).expect("it is in there").to_str().expect("UTF-8").to_owned();
            let module = format!("mod {};", file.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8"));
            if path.ends_with("/main.rs") || manifest.contains(&format!("path = \"tests/{path}\"")) {
                programs.push(path);
            } else if folder == tests {
                lost.extend((!page.contains(&format!("](tests/{path}/"))).then_some(path));
            } else if !file.ends_with("mod.rs") && !sources.concat().contains(&module) {
                lost.extend((!file.join("main.rs").exists()).then_some(path));
            }
        }
    }
    assert_eq!(lost, Vec::<String>::new(), "files that no program runs, or subjects that the page leaves out");
    assert!(programs.len() <= 12, "{programs:?}");
}

#[test]
fn no_name_of_a_test_is_longer_than_sixty_characters() {
    let long = |source: &str| -> Vec<String> {
        let names = source.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        names.filter(|name| name.len() > 60 && !name.contains(' ')).map(str::to_owned).collect()
    };
    for folder in [folders(&root().join("tests/tests")), folders(&root().join("tests/chaos/tests"))].concat() {
        for file in fs::read_dir(&folder).expect("the folder is there").flatten() {
            let source = fs::read_to_string(file.path()).unwrap_or_default();
            assert_eq!(long(&source), Vec::<String>::new(), "{}", file.path().display());
        }
    }
}
