//! The runbook has a section for every alert, outcome and rejection that refers to it.

use std::collections::BTreeSet;

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
