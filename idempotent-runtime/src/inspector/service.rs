//! The actions of an operator on one store: list its entries, look up one entry, purge an entry. See `resolving` for
//! resolutions.

use std::collections::HashSet;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use crate::deadline::Deadline;
use crate::inspector::audit;
use crate::inspector::audit::Operator;
use crate::inspector::problem::Problem;
use crate::inspector::query::{DEFAULT_LIMIT, LARGEST_LIMIT, Selection, Target};
use crate::inspector::{DEFAULT_STORE, Inspector};
use crate::key::RecordKey;
use crate::layer::made::policies_of_layers;
use crate::operate::entry_view::EntryView;
use crate::operate::masking::{Keys, visible};
use crate::operate::scan::{Pages, Scan};
use crate::policy::Policy;
use crate::policy::values::AfterCrash;
use crate::registry::Registry;
use crate::store::entry::{DamagedEntry, Page};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;

/// How long reading a store may take. After this time, the page shows the entries that were read so far.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long reading the records may take, if all claims are known and no larger number of entries was requested. The
/// first page may take longer.
const PATIENCE_FOR_RECORDS: Duration = Duration::from_millis(500);

/// A change by an operator.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Purge,
    Resolution,
}

/// One store of the registry, and one request about it.
pub(super) struct Service<'a> {
    inspector: &'a Inspector,
    store: &'a StoreHandle,
    pub(super) selection: Selection,
    operator: Option<&'a Operator>,
    never_again: HashSet<String>,
}

impl<'a> Service<'a> {
    pub(super) fn open(
        inspector: &'a Inspector,
        selection: Selection,
        operator: Option<&'a Operator>,
    ) -> Result<Self, Problem> {
        let name = selection.store.as_deref();
        let store = inspector.registry.store_named(name).ok_or_else(|| {
            let known: Vec<&str> = [DEFAULT_STORE].into_iter().chain(inspector.registry.store_names()).collect();
            let name = visible(name.unwrap_or_default());
            Problem::bad_request(
                "unknown_store",
                format!("there is no store `{name}`: write one of {}", known.join(", ")),
            )
        })?;
        if selection.keys == Keys::Revealed {
            audit::revealed(operator, store.name());
        }
        let rejects = |policy: &&Policy| policy.store() == name && !policy.after_crash().may_rerun();
        let of_layers = policies_of_layers();
        let policies = inspector.registry.policies().chain(of_layers.iter().map(|policy| &**policy));
        let never_again = policies.filter(rejects).map(|policy| policy.scope().to_owned()).collect();
        Ok(Self { inspector, store, selection, operator, never_again })
    }

    pub(super) fn store_name(&self) -> &str {
        self.store.name()
    }

    pub(super) fn keys_are_digests(&self) -> bool {
        self.inspector.registry.at_rest().digest_keys
    }

    /// Reads the store, and keeps at most `keep` entries of each state.
    pub(super) async fn scan(&self, keep: usize) -> Result<Scan, Problem> {
        let mut scan = Scan::new(self.selection.limit, keep).in_scope(self.selection.scope.clone());
        let deadline = Deadline::after(PATIENCE);
        while let Some((cursor, limit)) = scan.next_claims() {
            // The listing below contains the claims that were not read here.
            let Some(page) = deadline.bound(self.store.claims(cursor, limit)).await else { break };
            scan.add_claims(page.map_err(|error| Problem::of_store(&error))?, |scope| self.after_crash(scope));
        }
        let soon = Deadline::after(PATIENCE_FOR_RECORDS);
        let mut has_page = false;
        while let Some((cursor, limit)) = scan.next() {
            let is_overview = scan.has_all_claims() && self.selection.limit <= DEFAULT_LIMIT;
            let deadline = if is_overview && has_page { soon } else { deadline };
            match deadline.bound(self.store.list(cursor, limit)).await {
                Some(page) => {
                    scan.add(page.map_err(|error| Problem::of_store(&error))?, |scope| self.after_crash(scope));
                }
                None if has_page => break,
                None => return Err(Problem::of_store(&StoreError::TimedOut(PATIENCE))),
            }
            has_page = true;
        }
        Ok(scan)
    }

    /// Returns the entry with this key or id.
    pub(super) async fn look_up(&self, target: &Target) -> Result<EntryView, Problem> {
        let found = match target {
            Target::Id(id) => self.find(id).await?,
            Target::Key(key) => self.get(&self.stored(key)).await?,
        };
        found.ok_or_else(|| {
            let detail = match target {
                Target::Key(_) => "no entry has this scope, caller and key: the key was never used, was released, has \
                 expired, or was purged"
                    .to_owned(),
                Target::Id(_) => format!(
                    "none of the first {} entries has this id; look it up by scope, caller and key, or with a `limit` \
                     of up to {LARGEST_LIMIT}",
                    self.selection.limit
                ),
            };
            Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
        })
    }

    /// Purges the entry that the operator saw, unless it has changed.
    ///
    /// Logs an audit event, whatever the outcome.
    pub(super) async fn purge(&self, target: &Target, headers: &HeaderMap) -> Result<EntryView, Problem> {
        let audit = audit::Purge {
            operator: self.operator,
            store: self.store.name(),
            keys_are_digests: self.keys_are_digests(),
        };
        let (given, named) = self.named(target);
        let rejected = |problem: Problem, entry_view: Option<&EntryView>| {
            let key = entry_view.and_then(EntryView::key).or(given.as_ref());
            let (id, state) = (entry_view.and_then(EntryView::id), entry_view.map(EntryView::state));
            audit.ended(key, id.as_deref().or(named), state, &problem.outcome());
            problem
        };
        self.may_change(Change::Purge, headers).map_err(|problem| rejected(problem, None))?;
        let entry_view = self.look_up(target).await.map_err(|problem| rejected(problem, None))?;
        let confirmed = self.is_confirmed(&entry_view, entry_view.state().consequence());
        confirmed.map_err(|problem| rejected(problem, Some(&entry_view)))?;
        let Some(key) = entry_view.key() else { return Err(rejected(unpurgeable(), Some(&entry_view))) };
        let purged = self.store.purge(key).await;
        let purged = purged.map_err(|error| rejected(Problem::of_store(&error), Some(&entry_view)))?;
        let outcome = if purged { "purged" } else { "nothing_there" };
        audit.ended(Some(key), entry_view.id().as_deref(), Some(entry_view.state()), outcome);
        Ok(entry_view)
    }

    /// Returns the value that a purge or a resolution of the entry must repeat, if one of them is allowed.
    pub(super) fn confirmation(&self, entry_view: &EntryView) -> Option<String> {
        let may_change = self.inspector.allows_purge || self.may_be_resolved(entry_view);
        may_change.then(|| entry_view.confirmation()).flatten()
    }

    pub(super) fn may_be_resolved(&self, entry_view: &EntryView) -> bool {
        self.inspector.allows_resolve && entry_view.is_resolvable()
    }

    pub(super) fn operator(&self) -> Option<&Operator> {
        self.operator
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.inspector.registry
    }

    /// Returns the key as it is stored, or the id, depending on how the request names the entry.
    pub(super) fn named<'t>(&self, target: &'t Target) -> (Option<RecordKey>, Option<&'t str>) {
        match target {
            Target::Key(key) => (Some(self.stored(key)), None),
            Target::Id(id) => (None, Some(id.as_str())),
        }
    }

    /// Checks that this inspector allows the change, and that its own page or a client that is not a browser sent the
    /// request.
    pub(super) fn may_change(&self, change: Change, headers: &HeaderMap) -> Result<(), Problem> {
        let forbidden = |code, detail: String| Err(Problem::new(StatusCode::FORBIDDEN, code, detail));
        let (is_allowed, code, how, what) = match change {
            Change::Purge => (
                self.inspector.allows_purge,
                "purge_not_allowed",
                "this inspector only shows: build it with `Inspector::new(registry).allow_purge()` to purge",
                "a purge",
            ),
            Change::Resolution => (
                self.inspector.allows_resolve,
                "resolve_not_allowed",
                "this inspector resolves nothing: build it with `Inspector::new(registry).allow_resolve()`",
                "a resolution",
            ),
        };
        if !is_allowed {
            return forbidden(code, how.to_owned());
        }
        if comes_from_elsewhere(headers) {
            let whose = "this inspector's own page, or by a client that is no browser";
            return forbidden("cross_site", format!("{what} must be requested from {whose}"));
        }
        Ok(())
    }

    pub(super) fn is_confirmed(&self, entry_view: &EntryView, consequence: &str) -> Result<(), Problem> {
        match (&self.selection.confirm, entry_view.confirmation()) {
            (Some(given), Some(wanted)) if *given == wanted => Ok(()),
            (Some(_), _) => Err(Problem::new(
                StatusCode::CONFLICT,
                "changed",
                "the entry has changed since the look-up: look it up again, and confirm that",
            )),
            (None, _) => Err(Problem::new(
                StatusCode::PRECONDITION_REQUIRED,
                "not_confirmed",
                format!("look it up, and repeat its `confirm`; {consequence}"),
            )),
        }
    }

    /// Returns the key as the registry stores it.
    fn stored(&self, key: &RecordKey) -> RecordKey {
        self.inspector.registry.at_rest().key(key)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<EntryView>, Problem> {
        match self.store.get(key).await {
            Ok(entry) => Ok(entry.map(|entry| {
                let after_crash = self.after_crash(&entry.key.scope());
                EntryView::new(entry, after_crash)
            })),
            Err(StoreError::Damaged(reason)) => {
                Ok(Some(EntryView::from_damaged(DamagedEntry { key: Some(key.clone()), reason })))
            }
            Err(error) => Err(Problem::of_store(&error)),
        }
    }

    async fn find(&self, id: &str) -> Result<Option<EntryView>, Problem> {
        let deadline = Deadline::after(PATIENCE);
        let mut pages = Pages::of_at_most(self.selection.limit);
        while let Some((cursor, limit)) = pages.next() {
            let page = deadline.bound(self.store.claims(cursor, limit)).await;
            let page = page.unwrap_or(Err(StoreError::TimedOut(PATIENCE)));
            let Some(mut page) = page.map_err(|error| Problem::of_store(&error))? else { break };
            pages.took(&mut page);
            if let Some(found) = self.in_page(page, id) {
                return Ok(Some(found));
            }
        }
        let mut pages = Pages::of_at_most(self.selection.limit);
        while let Some((cursor, limit)) = pages.next() {
            let page = deadline.bound(self.store.list(cursor, limit)).await;
            let page = page.unwrap_or(Err(StoreError::TimedOut(PATIENCE)));
            let mut page = page.map_err(|error| Problem::of_store(&error))?;
            pages.took(&mut page);
            if let Some(found) = self.in_page(page, id) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn in_page(&self, page: Page, id: &str) -> Option<EntryView> {
        let entries = page.entries.into_iter().map(|entry| {
            let after_crash = self.after_crash(&entry.key.scope());
            EntryView::new(entry, after_crash)
        });
        let mut entry_views = entries.chain(page.damaged.into_iter().map(EntryView::from_damaged));
        entry_views.find(|entry_view| entry_view.id().as_deref() == Some(id))
    }

    fn after_crash(&self, scope: &str) -> Option<AfterCrash> {
        self.never_again.contains(scope).then_some(AfterCrash::Reject)
    }
}

fn unpurgeable() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "key_unreadable",
        "the key of this entry cannot be read: remove it with the tools of the database",
    )
}

/// Returns whether a browser sends the request for a page of another site. Clients that are not browsers usually send
/// neither header.
fn comes_from_elsewhere(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site != "same-origin";
    }
    let Some(origin) = text(header::ORIGIN) else { return false };
    let host = origin.split_once("://").map(|(_, host)| host);
    host.is_none() || host != text(header::HOST)
}
