//! The frame of the page: the head, the choice of the store, the overview, and the order of the sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::inspector::DEFAULT_STORE;
use crate::inspector::page::format::{Link, badge, meaning, number, text, title};
use crate::inspector::page::{Panel, STYLE, View, entries, handlers};
use crate::inspector::problem::Problem;
use crate::inspector::query::LARGEST_LIMIT;
use crate::operate::entry_view::State;
use crate::operate::masking::Keys;
use crate::operate::scan::{Counts, Scan};

pub(super) fn page(view: &View<'_>, panel: Option<&Panel>, scan: &Scan) -> Markup {
    document(&html! {
        (header(view))
        main {
            @if let Some(panel) = panel { (entries::panel(view, panel)) }
            (overview(view, scan))
            @match view.service.selection.state {
                Some(state) => (entries::table(view, scan, state)),
                None => {
                    @for state in State::ALL.into_iter().filter(|&state| state.is_stuck() && scan.counts().in_state(state) > 0) {
                        (entries::table(view, scan, state))
                    }
                    (entries::table(view, scan, State::InFlight))
                }
            }
            (entries::look_up(view))
            (handlers::table(view, scan))
        }
    })
}

/// Renders the page of one entry, without the overview.
pub(super) fn one_entry(view: &View<'_>, panel: &Panel) -> Markup {
    document(&html! {
        (header(view))
        main {
            (entries::panel(view, panel))
            p { a id="all" href=(Link::of(&view.service.selection)) { "Show all entries" } }
            (entries::look_up(view))
        }
    })
}

/// Renders the page for a request that failed, if nothing else can be shown.
pub(super) fn failure(problem: &Problem) -> Markup {
    document(&html! {
        header { h1 { "Idempotency" } }
        main {
            section class="panel failed" role="alert" {
                h2 { (problem.title()) }
                p { (text(&problem.detail)) }
                p { a href="?" { "Back to the default store" } }
            }
        }
    })
}

fn document(body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Idempotency inspector" }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
}

fn header(view: &View<'_>) -> Markup {
    let selection = &view.service.selection;
    let stores = [None].into_iter().chain(view.inspector.registry.store_names().map(Some));
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let link = Link::of(selection);
    let (other, label) = match selection.keys {
        Keys::Masked => (Keys::Revealed, "Reveal keys"),
        Keys::Revealed => (Keys::Masked, "Mask keys"),
    };
    html! {
        header {
            h1 { "Idempotency" }
            nav aria-label="Stores" {
                @for store in stores {
                    @let current = (store == selection.store.as_deref()).then_some("page");
                    a href=(Link { store, state: None, ..Link::of(selection) }) aria-current=[current] { (text(store.unwrap_or(DEFAULT_STORE))) }
                }
            }
            p class="tools" {
                span class="quiet" { "as of " time datetime=(now) { (now[11..19]) " UTC" } }
                a class="button" id="refresh" href=(link) { "Refresh" }
                a class="button" id="reveal" href=(Link { keys: other, ..link }) { (label) }
            }
        }
    }
}

fn overview(view: &View<'_>, scan: &Scan) -> Markup {
    let selection = &view.service.selection;
    let counts = scan.counts();
    html! {
        section aria-labelledby="overview" {
            div class="heading" {
                h2 id="overview" {
                    "Keys by state"
                    @if let Some(scope) = &selection.scope { " in " code { (text(scope)) } }
                }
                @if selection.state.is_some() || selection.scope.is_some() { a href="?" { "Show everything" } }
            }
            (bar(counts))
            ul class="states" {
                @for state in State::ALL {
                    @let current = (selection.state == Some(state)).then_some("true");
                    li class={ "state " (state) @if counts.in_state(state) == 0 { " none" } } {
                        a href=(Link { state: Some(state), fragment: "#entries", ..Link::of(selection) }) aria-current=[current] title=(meaning(state)) {
                            strong { (number(counts.in_state(state))) }
                            (badge(state))
                        }
                    }
                }
            }
            (reach(view, scan))
        }
    }
}

/// Says whether the numbers cover the whole store.
fn reach(view: &View<'_>, scan: &Scan) -> Markup {
    let selection = &view.service.selection;
    let scanned = number(scan.scanned());
    let more = (selection.limit.saturating_mul(10)).min(LARGEST_LIMIT);
    html! {
        @if scan.is_complete() {
            p class="quiet" { "All " (scanned) " entries of this store were counted." }
        } @else {
            p class="partial" role="note" {
                strong { "A part of the whole: " }
                "the first " (scanned) " entries were counted, and there are more. "
                @if scan.has_all_claims() { "All claims were found; the other figures say how many there are at least. " }
                @if more > selection.limit {
                    a href=(Link { limit: more, ..Link::of(selection) }) { "Count up to " (number(more)) }
                }
            }
        }
    }
}

/// Renders the shares of the states as a bar. The list below the bar shows the same data as numbers.
fn bar(counts: &Counts) -> Markup {
    let all: usize = State::ALL.into_iter().map(|state| counts.in_state(state)).sum();
    let present = || State::ALL.into_iter().filter(|&state| counts.in_state(state) > 0);
    // Even the smallest share must be visible.
    let weight = |state: State| (counts.in_state(state) * 10_000 / all).max(150);
    let total: usize = present().map(weight).sum();
    let mut left = 0;
    html! {
        svg class="bar" role="img" aria-label="Shares of the states" preserveAspectRatio="none" {
            @for state in present() {
                @let width = weight(state) * 10_000 / total;
                rect class=(state) x=(percent(left)) y="0" width=(percent(width - 20)) height="100%" {
                    title { (title(state)) ": " (number(counts.in_state(state))) }
                }
                ({ left += width; "" })
            }
        }
    }
}

fn percent(hundredths: usize) -> String {
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}
