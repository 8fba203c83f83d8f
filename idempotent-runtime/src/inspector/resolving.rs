//! Resolves an entry: checks the permission and the confirmation, calls the registry, and writes the audit event.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::inspector::audit::Operator;
use crate::inspector::problem::Problem;
use crate::inspector::query::{Said, Target};
use crate::inspector::service::{Change, Service};
use crate::operate::audit::Resolving;
use crate::operate::entry_view::EntryView;
use crate::operate::finding::Finding;
use crate::operate::masking::visible;
use crate::operate::resolve::ResolveError;
use crate::store::resolution::Resolved;

impl Service<'_> {
    /// Resolves the claim that the operator saw, unless the claim has changed or its handler runs.
    ///
    /// Logs an audit event, whatever the outcome.
    pub(super) async fn resolve(&self, target: &Target, headers: &HeaderMap) -> Result<EntryView, Problem> {
        let said = &self.selection.said;
        let audit = Resolving {
            by: self.operator().map(Operator::name),
            reason: said.reason.as_deref(),
            status: said.status.as_deref().and_then(|status| status.parse().ok()),
            store: self.store_name(),
            keys_are_digests: self.keys_are_digests(),
        };
        let (given, named) = self.named(target);
        let rejected = |problem: Problem, view: Option<&EntryView>| {
            let key = view.and_then(EntryView::key).or(given.as_ref());
            let (id, state) = (view.and_then(EntryView::id), view.map(EntryView::state));
            audit.ended(key, id.as_deref().or(named), state, &problem.outcome());
            problem
        };
        self.may_change(Change::Resolution, headers).map_err(|problem| rejected(problem, None))?;
        let finding = finding(said).map_err(|problem| rejected(problem, None))?;
        let finding = match self.operator() {
            Some(operator) => finding.by(operator.name()),
            None => finding,
        };
        let view = self.look_up(target).await.map_err(|problem| rejected(problem, None))?;
        self.is_confirmed(&view, "retries get what it says").map_err(|problem| rejected(problem, Some(&view)))?;
        let Some(entry) = view.entry() else { return Err(rejected(not_resolvable(), Some(&view))) };
        match self.registry().resolve(self.selection.store.as_deref(), entry, &finding).await {
            Ok(Resolved::Yes) => Ok(view),
            Ok(Resolved::StillRunning) => Err(Problem::new(
                StatusCode::CONFLICT,
                "still_running",
                "nothing was resolved: the lease of the claim has not expired, so its handler may run",
            )),
            Ok(Resolved::ChangedHands) => Err(Problem::new(
                StatusCode::CONFLICT,
                "changed",
                "nothing was resolved: the entry has changed since the look-up; look it up again",
            )),
            Err(ResolveError::Store(error)) => Err(Problem::of_store(&error)),
            Err(error) => Err(Problem::bad_request("invalid_finding", error.to_string())),
        }
    }
}

fn not_resolvable() -> Problem {
    Problem::new(StatusCode::CONFLICT, "not_resolvable", "the entry cannot be read: it can only be purged")
}

fn finding(said: &Said) -> Result<Finding, Problem> {
    let wrong = |what: &str| Problem::bad_request("invalid_finding", what);
    let reason = said.reason.clone().ok_or_else(|| wrong("say in `reason` how you know what became of the request"))?;
    match said.outcome.as_deref() {
        Some("not_executed") => {
            if [&said.status, &said.headers, &said.body, &said.ttl].into_iter().any(Option::is_some) {
                return Err(wrong(
                    "a request that was not executed has no response: leave `status`, `headers`, `body` and `ttl` out",
                ));
            }
            return Ok(Finding::not_executed(reason));
        }
        Some("executed") => {}
        _ => return Err(wrong("write `outcome=executed` or `outcome=not_executed`")),
    }
    let status = said.status.as_deref().and_then(|status| status.parse::<StatusCode>().ok());
    let status = status.ok_or_else(|| wrong("give the `status` that retries get, such as 201"))?;
    let mut response = Response::new(said.body.clone().unwrap_or_default());
    *response.status_mut() = status;
    let lines = said.headers.as_deref().unwrap_or_default().lines().filter(|line| !line.trim().is_empty());
    for line in lines {
        let (name, value) = header(line).ok_or_else(|| {
            wrong(&format!("`{}` is no header: write `name: value`, one in each line", visible(line)))
        })?;
        response.headers_mut().append(name, value);
    }
    let finding = Finding::executed(response, reason);
    let Some(ttl) = &said.ttl else { return Ok(finding) };
    let ttl: Duration = humantime::parse_duration(ttl).map_err(|_| wrong("`ttl` is a time such as `24h` or `7d`"))?;
    Ok(finding.ttl(ttl))
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}
