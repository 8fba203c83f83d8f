//! The JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Path, Query, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form, Json};
use http::HeaderMap;
use serde::Serialize;

use super::asked::{Asked, Selection, Target};
use super::audit::Operator;
use super::desk::Desk;
use super::handlers::HandlerReport;
use super::problem::Problem;
use super::scan::Counts;
use super::sighting::{EntryReport, Sighting, State};
use super::{DEFAULT_STORE, Inspector};
use crate::policies;

/// How many entries of each state are told at once.
const KEPT: usize = 1000;

type Address = Result<Query<Asked>, QueryRejection>;
type Body = Result<Form<Asked>, FormRejection>;
type Asking = Option<Extension<Operator>>;

#[derive(Serialize)]
struct Summary<'a> {
    store: &'a str,
    stores: Vec<&'a str>,
    scanned: usize,
    complete: bool,
    counts: &'a Counts,
    scopes: &'a BTreeMap<String, Counts>,
    purge_allowed: bool,
    keys_are_digests: bool,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "it is the name in the JSON")]
struct Entries<'a> {
    store: &'a str,
    scanned: usize,
    complete: bool,
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

pub(super) async fn handlers() -> Response {
    let handlers: Vec<_> = policies().map(HandlerReport::of).collect();
    Json(BTreeMap::from([("handlers", handlers)])).into_response()
}

pub(super) async fn summary(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Asking,
    asked: Address,
) -> Result<Response, Problem> {
    let desk = Desk::open(&inspector, in_address(asked)?, who(operator.as_ref()))?;
    let scan = desk.scan(0).await?;
    let stores = [DEFAULT_STORE].into_iter().chain(inspector.registry.store_names()).collect();
    let summary = Summary {
        store: desk.store_name(),
        stores,
        scanned: scan.scanned(),
        complete: scan.is_complete(),
        counts: scan.counts(),
        scopes: scan.scopes(),
        purge_allowed: inspector.allows_purge,
        keys_are_digests: desk.keys_are_digests(),
    };
    Ok(Json(summary).into_response())
}

pub(super) async fn entries(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Asking,
    asked: Address,
) -> Result<Response, Problem> {
    let desk = Desk::open(&inspector, in_address(asked)?, who(operator.as_ref()))?;
    let scan = desk.scan(KEPT).await?;
    let wanted = |state: &State| desk.selection.state.is_none_or(|only| only == *state);
    let sightings = State::ALL.into_iter().filter(wanted).flat_map(|state| scan.of(state));
    let entries = Entries {
        store: desk.store_name(),
        scanned: scan.scanned(),
        complete: scan.is_complete(),
        counts: scan.counts(),
        entries: sightings.map(|sighting| sighting.report(desk.selection.keys)).collect(),
    };
    Ok(Json(entries).into_response())
}

pub(super) async fn entry(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Asking,
    Path(id): Path<String>,
    asked: Address,
) -> Result<Response, Problem> {
    let desk = Desk::open(&inspector, in_address(asked)?, who(operator.as_ref()))?;
    let sighting = desk.look_up(&Target::id(&id)?).await?;
    Ok(one(&desk, &sighting))
}

pub(super) async fn look_up(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Asking,
    asked: Body,
) -> Result<Response, Problem> {
    let desk = Desk::open(&inspector, in_body(asked)?, who(operator.as_ref()))?;
    let sighting = desk.look_up(&target(&desk)?).await?;
    Ok(one(&desk, &sighting))
}

pub(super) async fn purge_by_id(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Asking,
    Path(id): Path<String>,
    headers: HeaderMap,
    asked: Address,
) -> Result<Response, Problem> {
    let desk = Desk::open(&inspector, in_address(asked)?, who(operator.as_ref()))?;
    let sighting = desk.purge(&Target::id(&id)?, &headers).await?;
    Ok(purged(&desk, &sighting))
}

pub(super) async fn purge(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Asking,
    headers: HeaderMap,
    asked: Body,
) -> Result<Response, Problem> {
    let desk = Desk::open(&inspector, in_body(asked)?, who(operator.as_ref()))?;
    let sighting = desk.purge(&target(&desk)?, &headers).await?;
    Ok(purged(&desk, &sighting))
}

fn one(desk: &Desk<'_>, sighting: &Sighting) -> Response {
    Json(OneEntry {
        store: desk.store_name(),
        entry: sighting.report(desk.selection.keys),
        consequence: sighting.state().consequence(),
        confirm: desk.confirmation(sighting),
    })
    .into_response()
}

fn purged(desk: &Desk<'_>, sighting: &Sighting) -> Response {
    let entry = sighting.report(desk.selection.keys);
    Json(Purged { store: desk.store_name(), purged: true, entry }).into_response()
}

pub(super) fn who(operator: Option<&Extension<Operator>>) -> Option<&Operator> {
    operator.map(|Extension(operator)| operator)
}

pub(super) fn target(desk: &Desk<'_>) -> Result<Target, Problem> {
    desk.selection.target.clone().ok_or_else(|| {
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
    Problem::bad_request("unreadable_parameters", super::visible(text))
}
