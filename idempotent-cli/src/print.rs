//! The output: a table for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use idempotent_runtime::operate::{Counts, EntryReport, EntryView, Keys, Scan, State, visible, visible_json};
use serde::Serialize;

/// A listing, in the format of the inspector.
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "it is the name in the JSON")]
struct Entries<'a> {
    scanned: usize,
    complete: bool,
    counts: &'a Counts,
    entries: Vec<EntryReport>,
}

pub(crate) fn entries(scan: &Scan, states: &[State], limit: usize, keys: Keys, json: bool) {
    let views: Vec<&EntryView> = states.iter().flat_map(|&state| scan.in_state(state)).take(limit).collect();
    if json {
        let (scanned, complete, counts) = (scan.scanned(), scan.is_complete(), scan.counts());
        let entries = views.iter().map(|view| view.report(keys).shortened()).collect();
        return self::json(&Entries { scanned, complete, counts, entries });
    }
    let present = State::ALL.into_iter().filter(|&state| scan.counts().in_state(state) > 0);
    let counts: Vec<String> = present.map(|state| format!("{} {state}", scan.counts().in_state(state))).collect();
    let mut text = if counts.is_empty() { "there are no entries\n".to_owned() } else { counts.join(", ") + "\n" };
    if !views.is_empty() {
        let header = ["STATE", "AGE", "SCOPE", "CALLER", "KEY", "", "ID"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(header).chain(views.iter().map(|view| row(view, keys))).collect();
        text += "\n";
        text += &table(&rows);
    }
    let all: usize = states.iter().map(|&state| scan.counts().in_state(state)).sum();
    if views.len() < all {
        let _ = writeln!(text, "\n{} of {all} are listed; --limit lists more", views.len());
    }
    out(&text);
}

pub(crate) fn entry(view: &EntryView, keys: Keys) -> String {
    let report = view.report(keys);
    let part = |part: Option<&String>| part.map_or_else(|| "none".to_owned(), |part| visible(part));
    let mut lines = vec![
        ("state", report.state.to_string()),
        ("scope", part(report.scope.as_ref())),
        ("caller", part(report.caller.as_ref())),
        ("key", key(&report)),
        ("since", format!("{} ({} ago)", report.since.as_deref().unwrap_or("unknown"), age(view))),
    ];
    let details = particulars(&report);
    if !details.is_empty() {
        lines.push(("details", details));
    }
    match (report.expires_in_ms, report.state) {
        (Some(left), _) => lines.push(("kept for", span(Duration::from_millis(left)))),
        (None, State::OutcomeUnknown) => lines.push(("kept", "until it is resolved or purged".to_owned())),
        (None, State::InFlight) => lines.push(("kept", "until its handler ends".to_owned())),
        (None, _) => {}
    }
    if let Some(fingerprint) = &report.fingerprint {
        lines.push(("request", format!("{fingerprint}…")));
    }
    lines.push(("id", report.id.clone().unwrap_or_default()));
    lines.into_iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<9} {value}");
        text
    })
}

pub(crate) fn json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("names and values are text");
    out(&(visible_json(&text) + "\n"));
}

/// Writes to standard output. A reader that stops reading early is no error.
pub(crate) fn out(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

fn row(view: &EntryView, keys: Keys) -> [String; 7] {
    let report = view.report(keys).shortened();
    let part = |part: Option<&String>| part.map_or_else(|| "-".to_owned(), |part| visible(part));
    [
        report.state.to_string(),
        age(view),
        part(report.scope.as_ref()),
        part(report.caller.as_ref()),
        key(&report),
        particulars(&report),
        report.id.clone().unwrap_or_default(),
    ]
}

fn key(report: &EntryReport) -> String {
    let shown = report.key.as_deref().map(visible);
    shown.or_else(|| report.key_hint.clone()).unwrap_or_else(|| "unreadable".to_owned())
}

fn age(view: &EntryView) -> String {
    view.since().map_or_else(
        || "unknown".to_owned(),
        // The clock of another machine may be ahead of this machine's clock.
        |since| span(SystemTime::now().duration_since(since).unwrap_or_default()),
    )
}

fn particulars(report: &EntryReport) -> String {
    let mut parts = Vec::new();
    if let Some(attempt) = report.attempt {
        parts.push(format!("attempt {attempt}"));
    }
    if let Some(left) = report.lease_left_ms {
        parts.push(format!("lease {}", span(Duration::from_millis(left))));
    }
    if let Some(status) = report.status {
        parts.push(status.to_string());
        parts.push(report.body_bytes.map_or_else(|| "body not recorded".to_owned(), |bytes| format!("{bytes} bytes")));
    }
    parts.extend(report.reason.as_deref().map(visible));
    parts.join(", ")
}

/// Returns the duration in whole seconds, if it is at least one second.
fn span(span: Duration) -> String {
    let whole = if span.as_secs() > 0 {
        Duration::from_secs(span.as_secs())
    } else {
        Duration::from_millis(span.as_millis().try_into().unwrap_or(0))
    };
    humantime::format_duration(whole).to_string()
}

/// Formats columns that are as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
