//! The entries: the table of a state, the form that looks up an entry, and the panel that shows, resolves and purges
//! it.

use std::time::Duration;

use maud::{Markup, html};

use crate::inspector::page::format::{Link, age, badge, meaning, number, span, text, title};
use crate::inspector::page::{Panel, View};
use crate::inspector::problem::Problem;
use crate::inspector::query::Target;
use crate::operate::entry_view::{EntryReport, EntryView, State};
use crate::operate::masking::{Keys, visible};
use crate::operate::scan::Scan;
use crate::policy::registration::written_policies;

pub(super) fn table(view: &View<'_>, scan: &Scan, state: State) -> Markup {
    let (entry_views, count) = (scan.in_state(state), scan.counts().in_state(state));
    let order = if matches!(state, State::Completed | State::ResponseNotRecorded) { "newest" } else { "oldest" };
    html! {
        section aria-labelledby=(state) id="entries" class={ "entries " (state) } {
            div class="heading" {
                h2 id=(state) { (title(state)) @if state == State::InFlight { " now" } }
                span class="quiet" {
                    @if count > entry_views.len() { (order) " " (entry_views.len()) " of " (number(count)) }
                    @else if count > 1 { (order) " first" }
                }
            }
            p class="quiet" { (meaning(state)) }
            @if entry_views.is_empty() {
                p class="empty" { "There are none." }
            } @else {
                table {
                    thead { tr {
                        th { (since(state)) }
                        th { "Scope" }
                        th { "Caller" }
                        th { "Key" }
                        th { (particulars(state)) }
                        th { "Kept for" }
                        th { span class="hidden" { "Details" } }
                    } }
                    tbody { @for entry_view in entry_views { (row(view, entry_view)) } }
                }
            }
        }
    }
}

fn row(view: &View<'_>, entry_view: &EntryView) -> Markup {
    let report = entry_view.report(view.service.selection.keys);
    let link = Link { id: report.id.as_deref(), fragment: "#entry", ..Link::of(&view.service.selection) };
    html! {
        tr {
            td data-label=(since(report.state)) { (age(entry_view, report.since.as_deref())) }
            td data-label="Scope" { (part(report.scope.as_deref())) }
            td data-label="Caller" { (part(report.caller.as_deref())) }
            td data-label="Key" { (key(&report)) }
            td data-label=(particulars(report.state)) { (particular(&report)) }
            td data-label="Kept for" { (kept(&report)) }
            td class="open" { @if report.id.is_some() { a href=(link) { "Look" span class="hidden" { " at this entry" } } } }
        }
    }
}

pub(super) fn look_up(view: &View<'_>) -> Markup {
    let selection = &view.service.selection;
    let given = selection.scope.as_deref().filter(|scope| visible(scope) == *scope);
    let scopes: std::collections::BTreeSet<_> = written_policies().map(crate::policy::Policy::scope).collect();
    html! {
        section aria-labelledby="look-up" class="look-up" {
            h2 id="look-up" { "Look one key up" }
            form method="post" action=(Link { fragment: "#entry", ..Link::of(selection) }) {
                (settings(view))
                label { "Scope" input name="scope" required list="scopes" autocomplete="off" value=[given]; }
                label { "Caller" input name="caller" autocomplete="off" placeholder="none" aria-describedby="about-callers"; }
                label class="wide" { "Key" input name="key" required autocomplete="off" spellcheck="false"; }
                datalist id="scopes" { @for scope in scopes { option value=(scope) {} } }
                button name="action" value="look_up" { "Look up" }
            }
            p class="quiet" id="about-callers" {
                "The key as the client sends it, without quotes. The caller if the handler names one; otherwise leave it empty."
                @if view.service.keys_are_digests() { " This registry stores digests: enter the plain caller and key, they are digested before the search." }
            }
        }
    }
}

pub(super) fn panel(view: &View<'_>, panel: &Panel) -> Markup {
    match panel {
        Panel::Found { target, entry_view } => found(view, target, entry_view),
        Panel::Failed(problem) => failed(problem),
        Panel::Resolved(entry_view) => html! {
            section class="panel done" id="entry" role="status" {
                h2 { "Resolved" }
                p { "The claim has ended as you said: retries get that response, or the next one runs the handler. It is in the audit log. This is the entry as it was:" }
                (facts(view, entry_view))
            }
        },
        Panel::Purged(entry_view) => html! {
            section class="panel done" id="entry" role="status" {
                h2 { "Purged" }
                p { "The entry is gone: the next request with this key runs the handler. The purge is in the audit log." }
                (facts(view, entry_view))
            }
        },
    }
}

/// Renders the form for an operator who knows what happened to the request.
fn resolution(view: &View<'_>, target: &Target, entry_view: &EntryView, confirmation: &str) -> Markup {
    let is_step = entry_view.key().is_some_and(|key| key.step_of().is_some());
    html! {
        details class="purge resolve" {
            summary { "Resolve this entry…" }
            form method="post" action=(Link { fragment: "#entry", ..Link::of(&view.service.selection) }) {
                (settings(view))
                (named(target))
                p {
                    "If the request was executed, its retries get the response below for the time in “Kept for”; a retry after that time runs the handler. If it was not executed, the next retry runs the handler."
                    @if is_step { " This is a step: it takes the status 200, no headers, and its result as JSON." }
                }
                label { "The request" select name="outcome" required {
                    option value="" { "find out first" }
                    option value="executed" { "was executed" }
                    option value="not_executed" { "was not executed" }
                } }
                label { "Status" input name="status" inputmode="numeric" autocomplete="off" placeholder="201"; }
                label { "Kept for" input name="ttl" autocomplete="off" placeholder="the ttl of the handler"; }
                label { "Headers" textarea name="headers" rows="2" spellcheck="false" placeholder="content-type: application/json" {} }
                label { "Body" textarea name="body" rows="5" spellcheck="false" {} }
                label { "Reason" input name="reason" required autocomplete="off" placeholder="how you know it; for the audit"; }
                label class="confirm" {
                    input type="checkbox" name="confirm" value=(confirmation) required;
                    " I have found out what became of the request."
                }
                button class="danger" name="action" value="resolve" { "Resolve" }
            }
        }
    }
}

fn named(target: &Target) -> Markup {
    html! { @match target {
        Target::Id(id) => input type="hidden" name="id" value=(id);,
        // The key is sent in the encoding of record keys, because a form would change line breaks and control
        // characters.
        Target::Key(key) => input type="hidden" name="record_key" value=(key.as_str());,
    } }
}

fn failed(problem: &Problem) -> Markup {
    html! {
        section class="panel failed" id="entry" role="alert" {
            h2 { (problem.title()) }
            p { (text(&problem.detail)) }
        }
    }
}

fn found(view: &View<'_>, target: &Target, entry_view: &EntryView) -> Markup {
    html! {
        section class={ "panel " (entry_view.state()) } id="entry" aria-labelledby="entry-title" {
            div class="heading" {
                h2 id="entry-title" { "One entry" }
                (badge(entry_view.state()))
            }
            p { (meaning(entry_view.state())) }
            (facts(view, entry_view))
            @if let Some(confirmation) = view.service.confirmation(entry_view) {
                @if view.service.may_be_resolved(entry_view) { (resolution(view, target, entry_view, &confirmation)) }
                @if view.inspector.allows_purge { details class="purge" {
                    summary { "Purge this entry…" }
                    form method="post" action=(Link { fragment: "#entry", ..Link::of(&view.service.selection) }) {
                        (settings(view))
                        (named(target))
                        p { strong { "Careful: " } (entry_view.state().consequence()) "." }
                        label class="confirm" {
                            input type="checkbox" name="confirm" value=(confirmation) required;
                            " I have looked into it, and the handler may run again."
                        }
                        button class="danger" name="action" value="purge" { "Purge" }
                    }
                } }
            }
        }
    }
}

/// Renders the settings that every form of the page sends again.
fn settings(view: &View<'_>) -> Markup {
    let selection = &view.service.selection;
    html! {
        input type="hidden" name="store" value=[selection.store.as_deref()];
        input type="hidden" name="limit" value=(selection.limit);
        @if selection.keys == Keys::Revealed { input type="hidden" name="reveal" value="keys"; }
    }
}

fn facts(view: &View<'_>, entry_view: &EntryView) -> Markup {
    let report = entry_view.report(view.service.selection.keys);
    html! {
        dl {
            div { dt { "Scope" } dd { (part(report.scope.as_deref())) } }
            div { dt { "Caller" } dd { (part(report.caller.as_deref())) } }
            div { dt { "Key" } dd { (key(&report)) } }
            div { dt { (since(report.state)) } dd { (age(entry_view, report.since.as_deref())) @if let Some(stamp) = &report.since { span class="quiet" { " · " (stamp) } } } }
            div { dt { (particulars(report.state)) } dd { (particular(&report)) } }
            div { dt { "Kept for" } dd { (kept(&report)) } }
            @if let Some(fingerprint) = &report.fingerprint { div { dt { "Fingerprint" } dd { code { (fingerprint) "…" } } } }
            @if let Some(id) = &report.id { div { dt { "Id" } dd { code { (id) } } } }
        }
    }
}

fn since(state: State) -> &'static str {
    match state {
        State::InFlight => "Running for",
        State::PastLease | State::OutcomeUnknown => "Claimed",
        State::Damaged => "Age",
        State::Completed | State::ResponseNotRecorded => "Answered",
    }
}

fn particulars(state: State) -> &'static str {
    match state {
        State::InFlight => "Lease left",
        State::PastLease | State::OutcomeUnknown => "Attempt",
        State::Damaged => "Reason",
        State::Completed | State::ResponseNotRecorded => "Response",
    }
}

fn particular(report: &EntryReport) -> Markup {
    html! {
        @match report.state {
            State::InFlight => {
                (left(report.lease_left_ms))
                @if let Some(attempt) = report.attempt.filter(|&attempt| attempt > 1) { span class="quiet" { " attempt " (attempt) } }
            }
            State::PastLease | State::OutcomeUnknown => @if let Some(attempt) = report.attempt { (attempt) },
            State::Damaged => @if let Some(reason) = &report.reason { (text(reason)) },
            State::Completed | State::ResponseNotRecorded => {
                @if let Some(status) = report.status { (status) }
                span class="quiet" {
                    @match report.body_bytes {
                        Some(bytes) => { " " (number(usize::try_from(bytes).unwrap_or(usize::MAX))) " bytes" },
                        None => " body not recorded",
                    }
                }
            }
        }
    }
}

fn key(report: &EntryReport) -> Markup {
    let shown = report.key.as_deref().map(text).or_else(|| report.key_hint.clone());
    html! { @match shown { Some(shown) => code { (shown) }, None => span class="quiet" { "unreadable" } } }
}

fn part(part: Option<&str>) -> Markup {
    html! { @match part { Some(part) => (text(part)), None => span class="quiet" { "none" } } }
}

fn kept(report: &EntryReport) -> Markup {
    html! { @match (report.expires_in_ms, report.state) {
        (None, State::OutcomeUnknown) => "until resolved",
        (None, State::InFlight) => "until it ends",
        (millis, _) => (left(millis)),
    } }
}

fn left(millis: Option<u64>) -> Markup {
    html! { @match millis { Some(millis) => (span(Duration::from_millis(millis))), None => span class="quiet" { "–" } } }
}
