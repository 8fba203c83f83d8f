//! The page: one document, without scripts and without external resources.

pub(crate) mod entries;
pub(crate) mod format;
pub(crate) mod handlers;
pub(crate) mod layout;

use std::sync::{Arc, LazyLock};

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Query, State as Shared};
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Form};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use maud::Markup;
use sha2::{Digest, Sha256};

use crate::inspector::Inspector;
use crate::inspector::audit::Operator;
use crate::inspector::problem::Problem;
use crate::inspector::query::{EntryQuery, Selection, Target};
use crate::inspector::service::Service;
use crate::operate::entry_view::EntryView;

const STYLE: &str = include_str!("style.css");

/// The most entries of each state that are shown.
const KEPT: usize = 100;

/// Returns a policy that allows only the page's own style, and only forms to the page itself.
pub(super) fn content_security_policy() -> HeaderValue {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let style = BASE64_STANDARD.encode(Sha256::digest(STYLE));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; img-src data:; form-action 'self'; base-uri 'none'; \
             frame-ancestors 'none'"
        );
        HeaderValue::from_str(&policy).expect("base64 is ASCII")
    });
    POLICY.clone()
}

/// The data that every part of the page needs.
struct View<'a> {
    service: &'a Service<'a>,
    inspector: &'a Inspector,
}

/// What the page shows about one entry.
enum Panel {
    Found { target: Target, entry_view: EntryView },
    Purged(EntryView),
    Resolved(EntryView),
    Failed(Problem),
}

pub(super) async fn show(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Option<Extension<Operator>>,
    asked: Result<Query<EntryQuery>, QueryRejection>,
) -> Response {
    let shown = async {
        let service = Service::open(&inspector, super::api::in_address(asked)?, super::api::who(operator.as_ref()))?;
        let panel = match &service.selection.target {
            None => None,
            Some(target) => Some(look_up(&service, target.clone()).await),
        };
        let scan = service.scan(KEPT).await?;
        let page = layout::page(&View { service: &service, inspector: &inspector }, panel.as_ref(), &scan);
        Ok(html(status_of(panel.as_ref()), page))
    };
    shown.await.unwrap_or_else(|problem| failed(&problem))
}

/// Looks up, purges or resolves one entry.
///
/// Reads nothing else from the store: after a change took effect, a slow listing must not turn the answer into a
/// failure.
pub(super) async fn act(
    Shared(inspector): Shared<Arc<Inspector>>,
    operator: Option<Extension<Operator>>,
    headers: HeaderMap,
    asked: Result<Form<EntryQuery>, FormRejection>,
) -> Response {
    let acted = async {
        let action = asked.as_ref().ok().and_then(|Form(asked)| asked.action.clone());
        let mut selection: Selection = super::api::in_body(asked)?;
        // A form ends each line of its fields with a carriage return that the operator has not typed.
        selection.said.body = selection.said.body.map(|body| body.replace("\r\n", "\n"));
        let service = Service::open(&inspector, selection, super::api::who(operator.as_ref()))?;
        let target = super::api::target(&service)?;
        let panel = match action.as_deref() {
            Some("purge") => service.purge(&target, &headers).await.map_or_else(Panel::Failed, Panel::Purged),
            Some("resolve") => service.resolve(&target, &headers).await.map_or_else(Panel::Failed, Panel::Resolved),
            _ => look_up(&service, target).await,
        };
        let page = layout::one_entry(&View { service: &service, inspector: &inspector }, &panel);
        Ok(html(status_of(Some(&panel)), page))
    };
    acted.await.unwrap_or_else(|problem| failed(&problem))
}

async fn look_up(service: &Service<'_>, target: Target) -> Panel {
    match service.look_up(&target).await {
        Ok(entry_view) => Panel::Found { target, entry_view },
        Err(problem) => Panel::Failed(problem),
    }
}

fn status_of(panel: Option<&Panel>) -> StatusCode {
    match panel {
        Some(Panel::Failed(problem)) => problem.status,
        _ => StatusCode::OK,
    }
}

fn failed(problem: &Problem) -> Response {
    html(problem.status, layout::failure(problem))
}

fn html(status: StatusCode, page: Markup) -> Response {
    let policy = [(header::CONTENT_SECURITY_POLICY, content_security_policy())];
    (status, policy, Html(page.into_string())).into_response()
}
