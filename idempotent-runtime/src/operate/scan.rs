//! Reads a store page by page, up to a limit: counts all entries, and keeps the most important entries of each state.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::key::RecordKey;
use crate::operate::entry_view::{EntryView, State};
use crate::policy::values::AfterCrash;
use crate::store::entry::{Cursor, Entry, EntryState, Page};

/// The most entries of one page.
const PAGE: usize = 2_500;

/// How far a listing has been read, and where to stop.
#[derive(Debug)]
pub(crate) struct Pages {
    cursor: Option<Cursor>,
    is_at_end: bool,
    most: usize,
    seen: usize,
}

impl Pages {
    pub(crate) fn of_at_most(most: usize) -> Self {
        Self { cursor: None, is_at_end: false, most, seen: 0 }
    }

    /// Returns the next cursor and limit to pass to the store. Returns `None` at the end.
    pub(crate) fn next(&mut self) -> Option<(Option<Cursor>, usize)> {
        let wanted = self.most.saturating_sub(self.seen).min(PAGE);
        (wanted > 0 && !self.is_at_end).then(|| (self.cursor.take(), wanted))
    }

    pub(crate) fn took(&mut self, page: &mut Page) {
        self.seen += page.entries.len() + page.damaged.len();
        self.cursor = page.next.take();
        self.is_at_end = self.cursor.is_none();
    }
}

/// How many entries are in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "they are the states")]
#[non_exhaustive]
pub struct Counts {
    pub outcome_unknown: usize,
    pub damaged: usize,
    pub past_lease: usize,
    pub in_flight: usize,
    pub completed: usize,
    pub response_not_recorded: usize,
}

impl Counts {
    /// Returns how many entries are in this state.
    pub fn in_state(&self, state: State) -> usize {
        let mut counts = self.clone();
        *counts.count_mut(state)
    }

    fn count_mut(&mut self, state: State) -> &mut usize {
        match state {
            State::OutcomeUnknown => &mut self.outcome_unknown,
            State::Damaged => &mut self.damaged,
            State::PastLease => &mut self.past_lease,
            State::InFlight => &mut self.in_flight,
            State::Completed => &mut self.completed,
            State::ResponseNotRecorded => &mut self.response_not_recorded,
        }
    }
}

/// Counts the entries of a store's listing, and keeps a bounded number of views of each state.
///
/// A scan does not call the store. Pass the result of [`next`](Self::next) to the store, and the store's answer to
/// [`add`](Self::add). Before that, do the same with [`next_claims`](Self::next_claims) and
/// [`add_claims`](Self::add_claims): then all claims are found, even if the listing is too long to be read to its end.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::operate::Scan;
/// use idempotent_runtime::store::{MemoryStore, Store, StoreAdmin};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idempotent_runtime::store::StoreError> {
/// let store = MemoryStore::new();
/// let mut scan = Scan::new(10_000, 100);
/// while let Some((cursor, limit)) = scan.next_claims() {
///     scan.add_claims(store.claims(cursor, limit).await?, |_scope| None);
/// }
/// while let Some((cursor, limit)) = scan.next() {
///     scan.add(store.list(cursor, limit).await?, |_scope| None);
/// }
/// assert!(scan.is_complete());
/// assert_eq!(scan.counts().in_flight, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Scan {
    /// The pages of the store's index of claims.
    claims: Pages,
    /// Whether the store has such an index.
    has_claims: bool,
    only_claims: bool,
    /// The keys that the index of claims has returned. The listing returns them again.
    told: HashSet<RecordKey>,
    pages: Pages,
    keep: usize,
    scope: Option<String>,
    counts: Counts,
    scopes: BTreeMap<String, Counts>,
    kept: BTreeMap<State, Vec<EntryView>>,
}

impl Scan {
    /// Creates a scan of at most `most` entries, which keeps at most `keep` views of each state.
    pub fn new(most: usize, keep: usize) -> Self {
        Self {
            claims: Pages::of_at_most(most),
            has_claims: false,
            only_claims: false,
            told: HashSet::new(),
            pages: Pages::of_at_most(most),
            keep,
            scope: None,
            counts: Counts::default(),
            scopes: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Counts and keeps only entries of this scope.
    #[must_use]
    pub fn in_scope(mut self, scope: Option<String>) -> Self {
        self.scope = scope;
        self
    }

    /// Reads only claims, if the store has an index of them.
    #[must_use]
    pub fn of_claims(mut self) -> Self {
        self.only_claims = true;
        self
    }

    /// Returns the cursor and limit to pass to [`StoreAdmin::claims`](crate::store::StoreAdmin::claims). Returns `None`
    /// if nothing is left to read.
    pub fn next_claims(&mut self) -> Option<(Option<Cursor>, usize)> {
        self.claims.next()
    }

    /// Adds the store's answer, which is `None` if the store has no index of claims. `after_crash` is the same as for
    /// [`add`](Self::add).
    pub fn add_claims(&mut self, page: Option<Page>, after_crash: impl Fn(&str) -> Option<AfterCrash>) {
        let Some(mut page) = page else {
            self.claims.is_at_end = true;
            return;
        };
        self.has_claims = true;
        self.claims.took(&mut page);
        // A claim whose key cannot be read would be counted again by the listing.
        page.damaged.retain(|damaged| self.only_claims || damaged.key.is_some());
        self.told.extend(page.entries.iter().map(|entry| entry.key.clone()));
        self.told.extend(page.damaged.iter().filter_map(|damaged| damaged.key.clone()));
        self.see_all(page, after_crash);
    }

    /// Returns the cursor and limit to pass to [`StoreAdmin::list`](crate::store::StoreAdmin::list). Returns `None` if
    /// nothing is left to read.
    #[expect(clippy::should_implement_trait, reason = "what comes next depends on what is added")]
    pub fn next(&mut self) -> Option<(Option<Cursor>, usize)> {
        if self.is_of_claims() { None } else { self.pages.next() }
    }

    fn is_of_claims(&self) -> bool {
        self.only_claims && self.has_claims
    }

    /// Adds the store's answer. `after_crash` returns the policy of the handlers of a scope, if it is known.
    pub fn add(&mut self, mut page: Page, after_crash: impl Fn(&str) -> Option<AfterCrash>) {
        self.pages.took(&mut page);
        let is_claim = |entry: &Entry| matches!(entry.state, EntryState::Claimed { .. });
        page.entries.retain(|entry| !is_claim(entry) || !self.told.contains(&entry.key));
        page.damaged.retain(|damaged| damaged.key.as_ref().is_none_or(|key| !self.told.contains(key)));
        self.see_all(page, after_crash);
    }

    fn see_all(&mut self, page: Page, after_crash: impl Fn(&str) -> Option<AfterCrash>) {
        for entry in page.entries {
            let after_crash = after_crash(&entry.key.scope());
            self.see(EntryView::new(entry, after_crash));
        }
        page.damaged.into_iter().map(EntryView::from_damaged).for_each(|damaged| self.see(damaged));
        for (state, kept) in &mut self.kept {
            cut(*state, kept, self.keep);
        }
    }

    fn see(&mut self, entry_view: EntryView) {
        let scope = entry_view.key().map(|key| key.scope().into_owned());
        if self.scope.is_some() && scope != self.scope {
            return;
        }
        *self.counts.count_mut(entry_view.state()) += 1;
        if let Some(scope) = scope {
            *self.scopes.entry(scope).or_default().count_mut(entry_view.state()) += 1;
        }
        let kept = self.kept.entry(entry_view.state()).or_default();
        kept.push(entry_view);
        if kept.len() > 2 * self.keep + 1000 {
            let state = kept[0].state();
            cut(state, kept, self.keep);
        }
    }

    /// Returns how many entries were read, in all scopes.
    pub fn scanned(&self) -> usize {
        if self.is_of_claims() { self.claims.seen } else { self.pages.seen }
    }

    /// Returns whether all entries were read. If not, every count is a lower bound.
    pub fn is_complete(&self) -> bool {
        if self.is_of_claims() { self.claims.is_at_end } else { self.pages.is_at_end }
    }

    /// Returns whether all claims were read. If so, the counts of running and stuck requests are exact even if the scan
    /// is not complete, except for damaged entries. The counts of recorded responses are then lower bounds.
    pub fn has_all_claims(&self) -> bool {
        self.is_complete() || self.has_claims && self.claims.is_at_end
    }

    /// Returns how many entries are in each state.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns how many entries are in each state, for each scope.
    pub fn scopes(&self) -> &BTreeMap<String, Counts> {
        &self.scopes
    }

    /// Returns the views of this state: claims with the oldest first, records with the newest first.
    pub fn in_state(&self, state: State) -> &[EntryView] {
        self.kept.get(&state).map_or(&[], Vec::as_slice)
    }
}

fn cut(state: State, kept: &mut Vec<EntryView>, keep: usize) {
    kept.sort_by_key(EntryView::since);
    if matches!(state, State::Completed | State::ResponseNotRecorded) {
        kept.reverse();
    }
    kept.truncate(keep);
}
