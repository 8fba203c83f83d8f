//! The annotated handlers and their policies.

use maud::{Markup, html};

use crate::inspector::DEFAULT_STORE;
use crate::inspector::handlers::HandlerReport;
use crate::inspector::page::View;
use crate::inspector::page::format::{number, span};
use crate::operate::entry_view::State;
use crate::operate::scan::Scan;

pub(super) fn table(view: &View<'_>, scan: &Scan) -> Markup {
    let handlers: Vec<_> = view.inspector.registry.policies().map(HandlerReport::of).collect();
    html! {
        section aria-labelledby="handlers" {
            div class="heading" {
                h2 id="handlers" { "Handlers and their policies" }
                span class="quiet" { (handlers.len()) " annotated in this program" }
            }
            @if handlers.is_empty() {
                p class="empty" { "This program has no annotated handler." }
            } @else {
                table {
                    thead { tr {
                        th { "Scope" } th { "Handler" } th { "After a crash" } th { "Records" } th { "Kept" }
                        th { "A duplicate" } th { "Must repeat" } th { "Keys" }
                    } }
                    tbody { @for handler in &handlers { (row(view, scan, handler)) } }
                }
            }
        }
    }
}

fn row(view: &View<'_>, scan: &Scan, handler: &HandlerReport) -> Markup {
    html! {
        tr {
            td data-label="Scope" {
                strong { (handler.scope) }
                @if handler.shared_scope { span class="quiet" { " shared" } }
                @if handler.store != DEFAULT_STORE { span class="quiet" { " in " (handler.store) } }
            }
            td data-label="Handler" { code title=(handler.handler) { (name(&handler.handler)) } span class="quiet location" { (handler.location) } }
            td data-label="After a crash" {
                (handler.after_crash)
                @if let Some(database) = handler.transaction { span class="quiet" { " in a transaction of " (database) } }
                @if let Some(isolation) = handler.isolation { span class="quiet" { " " (isolation) } }
            }
            td data-label="Records" { (handler.cache) span class="quiet" { " of " (handler.methods) } }
            td data-label="Kept" { (span(handler.ttl)) }
            td data-label="A duplicate" { (handler.in_flight) }
            td data-label="Must repeat" { (handler.fingerprint) @if handler.caller { span class="quiet" { " per caller" } } }
            td data-label="Keys" {
                (keys(view, scan, handler))
                @if handler.required { span class="quiet" { " required" } }
            }
        }
    }
}

/// Returns the name without its module, because the location already shows the module.
fn name(handler: &str) -> &str {
    handler.rsplit_once("::").map_or(handler, |(_, name)| name)
}

/// Renders how many keys of this scope are in the displayed store.
fn keys(view: &View<'_>, scan: &Scan, handler: &HandlerReport) -> Markup {
    let is_shown = handler.store == view.service.selection.store.as_deref().unwrap_or(DEFAULT_STORE);
    let counts = scan.scopes().get(handler.scope.as_str()).filter(|_| is_shown);
    let all = counts.map_or(0, |counts| State::ALL.into_iter().map(|state| counts.in_state(state)).sum());
    html! {
        @if is_shown { (number(all)) } @else { span class="quiet" { "–" } }
    }
}
