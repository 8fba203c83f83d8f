//! Every test that the documents name exists, and every page to which the README links exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect("the document is there")
}

/// Test files in backquotes, with or without the name of a test, such as `tests/tests/request/keys.rs::a_name`.
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

/// The code that a migration page replaces is the code that the benchmarks compile with the other crate.
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

/// The links of a page to files of this repository.
fn files(document: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let targets = document.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    files.map(|target| target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading))))
}

fn has_heading(page: &str, anchor: &str) -> bool {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings.map(|heading| heading.to_lowercase().replace(' ', "-")).any(|heading| heading == anchor)
}

#[test]
fn links_of_the_pages_lead_to_files_and_headings() {
    let pages =
        ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "tests/README.md", "examples/charges/README.md"];
    for page in pages {
        let document = read(page);
        assert!(files(&document).count() > 0, "{page}");
        let folder = Path::new(page).parent().expect("a page is in a folder");
        let is_there = |(file, heading): &(&str, Option<&str>)| {
            let path = folder.join(file);
            let target = || read(path.to_str().expect("UTF-8"));
            root().join(&path).exists() && heading.is_none_or(|heading| has_heading(&target(), heading))
        };
        let missing: Vec<_> = files(&document).filter(|link| !is_there(link)).collect();
        assert!(missing.is_empty(), "{page}: {missing:?}");
    }
}

/// The README links to the rendered pages, because their links lead to items of the API, which the sources do not show.
#[test]
fn readme_leads_to_every_page_of_the_guide() {
    const GUIDE: &str = "https://docs.rs/idempotent-runtime/latest/idempotent_runtime/guide/";
    let (readme, modules) = (read("README.md"), read("idempotent-runtime/src/guide/mod.rs"));
    let linked = readme.split("](").skip(1).filter_map(|rest| rest.strip_prefix(GUIDE)?.split_once("/index.html)"));
    let linked: BTreeSet<&str> = linked.map(|(page, _)| page).collect();
    let pages = modules.lines().filter_map(|line| line.trim().strip_suffix(".md\",")?.split_once(": \""));
    let pages: BTreeSet<&str> = pages.map(|(module, _)| module).collect();
    assert!(pages.len() > 20);
    assert_eq!(linked, pages);
    assert!(readme.contains("](idempotent-runtime/src/guide)"), "docs.rs has no guide of an unreleased version");
}

/// A page of the guide links to items of the API by their paths in the program. These links work only in the rendered
/// guide. Only the README links to the folder of the pages, for readers of a version that docs.rs does not have.
#[test]
fn no_page_for_users_leads_to_a_source_of_the_guide() {
    for page in ["README.md", "SECURITY.md", "CHANGELOG.md", "docs/cookbook.md", "docs/guarantees.md"] {
        assert!(!read(page).contains("src/guide/"), "{page}");
    }
    for page in fs::read_dir(root().join("docs/operations")).expect("the folder is there").flatten() {
        let text = fs::read_to_string(page.path()).unwrap_or_default();
        assert!(!text.contains("src/guide/"), "{}", page.path().display());
    }
}

/// Whether the host is this machine or a placeholder, or the URL is allowed. `cache` is the name of another machine.
fn is_local_or_allowed(url: &str) -> bool {
    let authority = url.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let is_name = host.starts_with(|first: char| first.is_ascii_lowercase());
    !is_name || host.starts_with("localhost") || url.contains("tls=disable")
}

#[test]
fn no_page_shows_a_url_that_is_rejected_as_in_clear() {
    let folders = ["docs", "docs/operations", "idempotent-runtime/src/guide", "idempotent-cli", "."];
    let files =
        folders.iter().flat_map(|folder| fs::read_dir(root().join(folder)).expect("the folder is there").flatten());
    let pages =
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    for page in pages.chain([root().join("idempotent-cli/src/arguments.rs")]) {
        let text = fs::read_to_string(&page).expect("the page is text");
        for scheme in ["redis://", "redis+sentinel://"] {
            let urls = text.split(scheme).skip(1).filter_map(|rest| rest.split([' ', '`', '"', '\'', '\n']).next());
            let rejected: Vec<_> = urls.filter(|url| !is_local_or_allowed(url)).collect();
            assert!(rejected.is_empty(), "{}: {scheme}{rejected:?}", page.display());
        }
    }
}

#[test]
fn readme_has_at_most_1200_words() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 1_200, "{words} words: move details to the guide");
}

/// The cells of the rows of all tables in a document.
fn rows(document: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = document.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect())
}

/// `cargo xtask bench` writes both.
#[test]
fn costs_in_the_readme_are_those_of_the_results() {
    let (readme, results) = (read("README.md"), read("benches/RESULTS.md"));
    let (_, costs) = readme.split_once("<!--costs-->").expect("the costs begin");
    let (costs, _) = costs.split_once("<!--/costs-->").expect("the costs end");
    let mut compared = 0;
    for cells in rows(costs).filter(|cells| cells.len() == 7 && cells[0].ends_with('B')) {
        let of_results = rows(&results).find(|row| row[0] == cells[0]).unwrap_or_else(|| panic!("no {:?}", cells[0]));
        let nanos: f64 = of_results[1].split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("nanoseconds");
        let micros: f64 = cells[1].trim_end_matches("µs").replace('−', "-").parse().expect("microseconds");
        assert!((nanos / 1_000.0 - micros).abs() <= 0.005 + 0.005 * micros.abs(), "{cells:?}: {of_results:?}");
        let ratio = of_results[1].split(['(', ')']).nth(1).expect("a quotient");
        let of_peers: Vec<_> = [ratio].iter().chain(&of_results[2..]).map(|cell| cell.replace(' ', "")).collect();
        assert_eq!(cells[2..], of_peers, "{:?}", cells[0]);
        compared += 1;
    }
    for (cells, retries) in [("first executions", "0 %"), ("replays", "100 %")]
        .map(|(name, retries)| (rows(costs).find(|row| row[0] == name).expect("a row of loopback"), retries))
    {
        for (cell, store) in cells[1..].iter().zip(["memory", "SQLite", "Redis", "PostgreSQL"]) {
            let name = format!("{store}, {retries}");
            let of_results = rows(&results).find(|row| row[0] == name && row.len() > 2).expect("a row of loopback");
            let rate: f64 = of_results[2].parse().expect("a rate");
            let shown: f64 = cell.replace(',', "").parse().expect("a rate");
            assert!((rate - shown).abs() <= 50.0, "{name}: {cell}, {of_results:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 7 + 8);
}

/// crates.io shows a part of the README, so each statement must have only one wording.
#[test]
fn crate_readme_has_only_sections_of_the_readme() {
    let (readme, of_crate) = (read("README.md"), read("idempotent-runtime/README.md"));
    let sections: Vec<&str> = readme.split("\n## ").map(str::trim_end).collect();
    let changed: Vec<_> =
        of_crate.split("\n## ").map(str::trim_end).filter(|section| !sections.contains(section)).collect();
    assert!(of_crate.lines().count() > 40 && changed.is_empty(), "{changed:?}");
    assert_eq!(files(&of_crate).count(), 0, "its links lead out of the crate");
}

/// The folders of the test programs, and their subfolders.
fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).expect("the folder is there").flatten().map(|entry| entry.path());
    let within = entries.filter(|path| path.is_dir()).flat_map(|folder| folders(&folder));
    within.chain([of.to_owned()]).collect()
}

/// The compiler does not report a file that no module names: its tests would silently not run.
#[test]
fn every_test_file_belongs_to_one_of_twelve_programs() {
    let (tests, manifest) = (root().join("tests/tests"), read("tests/Cargo.toml"));
    let page = read("tests/README.md");
    let (mut programs, mut lost) = (Vec::new(), Vec::new());
    for folder in folders(&tests) {
        let sources = ["main.rs", "mod.rs"].map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default());
        let files = fs::read_dir(&folder).expect("the folder is there").flatten().map(|entry| entry.path());
        for file in files.filter(|path| path != &tests.join("process")) {
            let path = file.strip_prefix(&tests).expect("it is in the folder").to_str().expect("UTF-8").to_owned();
            let is_source = file.extension().is_none_or(|extension| extension == "rs");
            let module = format!("mod {};", file.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8"));
            if path.ends_with("/main.rs") || manifest.contains(&format!("path = \"tests/{path}\"")) {
                programs.push(path);
            } else if folder == tests {
                lost.extend((!page.contains(&format!("](tests/{path}/"))).then_some(path));
            } else if is_source && !file.ends_with("mod.rs") && !sources.concat().contains(&module) {
                lost.extend((!file.join("main.rs").exists()).then_some(path));
            }
        }
    }
    assert_eq!(lost, Vec::<String>::new(), "files that no program runs, or subjects that the page leaves out");
    assert!(programs.len() <= 12, "{programs:?}");
}
