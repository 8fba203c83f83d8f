//! The JSON interface.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Path, Query, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form};
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;

use crate::inspector::audit::Operator;
use crate::inspector::handlers::HandlerReport;
use crate::inspector::problem::Problem;
use crate::inspector::query::{EntryQuery, Selection, Target};
use crate::inspector::service::Service;
use crate::inspector::{DEFAULT_STORE, Inspector};
use crate::operate::entry_view::{EntryReport, EntryView, State};
use crate::operate::masking::{visible, visible_json};
use crate::operate::scan::Counts;

/// The most entries of each state that one answer contains.
const KEPT: usize = 1000;

type Address = Result<Query<EntryQuery>, QueryRejection>;
type Body = Result<Form<EntryQuery>, FormRejection>;
type MaybeOperator = Option<Extension<Operator>>;
type Inspected = Shared<Arc<Inspector>>;
type Answer = Result<Response, Problem>;

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are the members of the JSON")]
struct Summary<'a> {
    store: &'a str,
    stores: Vec<&'a str>,
    scanned: usize,
    complete: bool,
    all_claims: bool,
    counts: &'a Counts,
    scopes: &'a BTreeMap<String, Counts>,
    purge_allowed: bool,
    resolve_allowed: bool,
    keys_are_digests: bool,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "it is the name in the JSON")]
struct Entries<'a> {
    store: &'a str,
    scanned: usize,
    complete: bool,
    all_claims: bool,
    counts: &'a Counts,
    entries: Vec<EntryReport>,
}

#[derive(Serialize)]
struct OneEntry<'a> {
    store: &'a str,
    entry: EntryReport,
    consequence: &'a str,
    confirm: Option<String>,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "it is the name in the JSON")]
struct Purged<'a> {
    store: &'a str,
    purged: bool,
    entry: EntryReport,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "it is the name in the JSON")]
struct Resolved<'a> {
    store: &'a str,
    resolved: bool,
    entry: EntryReport,
}

pub(super) async fn handlers(Shared(inspector): Inspected) -> Response {
    let handlers: Vec<_> = inspector.registry.policies().map(HandlerReport::of).collect();
    json(&BTreeMap::from([("handlers", handlers)]))
}

pub(super) async fn summary(Shared(inspector): Inspected, by: MaybeOperator, asked: Address) -> Answer {
    let service = Service::open(&inspector, in_address(asked)?, who(by.as_ref()))?;
    let scan = service.scan(0).await?;
    let stores = [DEFAULT_STORE].into_iter().chain(inspector.registry.store_names()).collect();
    let summary = Summary {
        store: service.store_name(),
        stores,
        scanned: scan.scanned(),
        complete: scan.is_complete(),
        all_claims: scan.has_all_claims(),
        counts: scan.counts(),
        scopes: scan.scopes(),
        purge_allowed: inspector.allows_purge,
        resolve_allowed: inspector.allows_resolve,
        keys_are_digests: service.keys_are_digests(),
    };
    Ok(json(&summary))
}

pub(super) async fn entries(Shared(inspector): Inspected, by: MaybeOperator, asked: Address) -> Answer {
    let service = Service::open(&inspector, in_address(asked)?, who(by.as_ref()))?;
    let scan = service.scan(KEPT).await?;
    let wanted = |state: &State| service.selection.state.is_none_or(|only| only == *state);
    let entry_views = State::ALL.into_iter().filter(wanted).flat_map(|state| scan.in_state(state));
    let entries = Entries {
        store: service.store_name(),
        scanned: scan.scanned(),
        complete: scan.is_complete(),
        all_claims: scan.has_all_claims(),
        counts: scan.counts(),
        entries: entry_views.map(|entry_view| entry_view.report(service.selection.keys).shortened()).collect(),
    };
    Ok(json(&entries))
}

pub(super) async fn entry(
    Shared(inspector): Inspected,
    by: MaybeOperator,
    Path(id): Path<String>,
    asked: Address,
) -> Answer {
    let service = Service::open(&inspector, in_address(asked)?, who(by.as_ref()))?;
    let entry_view = service.look_up(&Target::id(&id)?).await?;
    Ok(one(&service, &entry_view))
}

pub(super) async fn look_up(Shared(inspector): Inspected, by: MaybeOperator, asked: Body) -> Answer {
    let service = Service::open(&inspector, in_body(asked)?, who(by.as_ref()))?;
    let entry_view = service.look_up(&target(&service)?).await?;
    Ok(one(&service, &entry_view))
}

pub(super) async fn purge_by_id(
    Shared(inspector): Inspected,
    by: MaybeOperator,
    Path(id): Path<String>,
    headers: HeaderMap,
    asked: Address,
) -> Answer {
    let service = Service::open(&inspector, in_address(asked)?, who(by.as_ref()))?;
    let entry_view = service.purge(&Target::id(&id)?, &headers).await?;
    Ok(purged(&service, &entry_view))
}

pub(super) async fn purge(Shared(inspector): Inspected, by: MaybeOperator, headers: HeaderMap, asked: Body) -> Answer {
    let service = Service::open(&inspector, in_body(asked)?, who(by.as_ref()))?;
    let entry_view = service.purge(&target(&service)?, &headers).await?;
    Ok(purged(&service, &entry_view))
}

pub(super) async fn resolve(
    Shared(inspector): Inspected,
    by: MaybeOperator,
    headers: HeaderMap,
    asked: Body,
) -> Answer {
    let service = Service::open(&inspector, in_body(asked)?, who(by.as_ref()))?;
    let entry_view = service.resolve(&target(&service)?, &headers).await?;
    let entry = entry_view.report(service.selection.keys);
    Ok(json(&Resolved { store: service.store_name(), resolved: true, entry }))
}

fn one(service: &Service<'_>, entry_view: &EntryView) -> Response {
    json(&OneEntry {
        store: service.store_name(),
        entry: entry_view.report(service.selection.keys),
        consequence: entry_view.state().consequence(),
        confirm: service.confirmation(entry_view),
    })
}

fn purged(service: &Service<'_>, entry_view: &EntryView) -> Response {
    let entry = entry_view.report(service.selection.keys);
    json(&Purged { store: service.store_name(), purged: true, entry })
}

/// Returns a JSON response for programs, with escapes for the terminal on which an operator reads it.
pub(super) fn json(value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("names and values are text");
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], visible_json(&text)).into_response()
}

pub(super) fn who(operator: Option<&Extension<Operator>>) -> Option<&Operator> {
    operator.map(|Extension(operator)| operator)
}

pub(super) fn target(service: &Service<'_>) -> Result<Target, Problem> {
    service.selection.target.clone().ok_or_else(|| {
        Problem::bad_request("missing_key", "say which entry: `scope`, `caller` if it has one, and `key`; or `id`")
    })
}

pub(super) fn in_address(asked: Address) -> Result<Selection, Problem> {
    let Query(asked) = asked.map_err(|rejection| unreadable(&rejection.body_text()))?;
    asked.in_address()
}

pub(super) fn in_body(asked: Body) -> Result<Selection, Problem> {
    let Form(asked) = asked.map_err(|rejection| unreadable(&rejection.body_text()))?;
    asked.selection()
}

fn unreadable(text: &str) -> Problem {
    Problem::bad_request("unreadable_parameters", visible(text))
}
