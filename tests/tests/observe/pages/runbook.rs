//! The runbook has a section for every alert, outcome and rejection that refers to it.

use std::collections::BTreeSet;
use std::path::Path;

use super::promql::exposition;
use super::{path, read};

/// The anchors of the page, as GitHub names them.
pub(crate) fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |char: &char| char.is_alphanumeric() || ['-', '_', ' '].contains(char);
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    for name in ["README.md", "runbook.md"] {
        let page = read(name);
        assert!(links(&page).count() > 5);
        for link in links(&page).filter(|link| !link.starts_with("https://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { name } else { file };
            assert!(path(file).exists(), "{name}: {link}");
            assert!(anchor.is_empty() || anchors(&read(file)).contains(anchor), "{name}: {link}");
        }
    }
}

/// Texts in italics that are no log lines: two panels of the dashboard, and a term.
const OTHERS: [&str; 3] = ["store errors", "oldest in flight", "record key"];

#[test]
fn every_log_line_of_the_runbook_is_logged() {
    let mut logged = String::new();
    sources(&path("../../idempotent-runtime/src"), &mut logged);
    let runbook = read("runbook.md").replace("**", "");
    let lines: BTreeSet<String> = runbook
        .split("\n\n")
        .flat_map(|paragraph| paragraph.split('*').skip(1).step_by(2))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        // Commands have asterisks too.
        .filter(|line| line.starts_with(char::is_alphabetic) && !OTHERS.contains(&line.as_str()))
        .collect();
    assert!(lines.len() > 8, "{lines:?}");
    let missing: Vec<_> = lines.iter().filter(|line| !logged.contains(line.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Collects the files in this folder, with each text on one line.
fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("the source is text");
            let mut parts = source.split("\\\n");
            all.push_str(parts.next().unwrap_or_default());
            parts.for_each(|part| all.push_str(part.trim_start()));
        }
    }
}

#[tokio::test]
async fn every_outcome_and_every_metric_is_explained() {
    let exposition = exposition().await;
    let (page, runbook) = (read("README.md"), anchors(&read("runbook.md")));
    let outcomes: BTreeSet<&str> =
        exposition.samples().iter().filter_map(|sample| sample.labels.get("outcome")).map(String::as_str).collect();
    assert_eq!(outcomes.len(), 23);
    for outcome in outcomes {
        let is_listed = page.lines().any(|line| {
            line.strip_prefix("| `")
                .and_then(|row| row.split('|').next())
                .is_some_and(|cell| cell.split(", ").any(|name| name.trim().trim_matches('`') == outcome))
        });
        assert!(is_listed || runbook.contains(outcome), "{outcome}");
    }
    for name in exposition.labels().keys() {
        let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        assert!(page.contains(&format!("| `{whole}` |")), "{whole}");
    }
}

/// The guide lists the rejections as clients get them.
#[test]
fn every_rejection_has_a_section() {
    let page = read("../../idempotent-runtime/src/guide/rejections.md");
    let codes = page.lines().filter(|line| line.starts_with("| ")).filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let is_rejection = cells.get(2).is_some_and(|status| status.starts_with(['4', '5']));
        is_rejection.then(|| cells[3].trim_matches('`').to_owned())
    });
    let codes: BTreeSet<String> = codes.collect();
    assert!(codes.len() >= 10, "{codes:?}");
    let anchors = anchors(&read("runbook.md"));
    let missing: Vec<_> = codes.iter().filter(|code| !anchors.contains(*code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
