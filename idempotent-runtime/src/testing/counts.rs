//! The events that a registry has observed, counted by scope.

use std::collections::HashMap;
use std::sync::Arc;

use crate::observe::event::{Event, Observer};
use crate::rejection::problem::CODES;
use crate::sync::{Mutex, lock};

/// The number of each event in each scope. A clone shares the counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(Arc<Mutex<HashMap<(String, Event), usize>>>);

impl Counts {
    pub(crate) fn of(&self, scope: &str, event: Event) -> usize {
        let counts = lock(&self.0);
        counts.get(&(scope.to_owned(), event)).copied().unwrap_or_default()
    }

    /// Returns the scopes with a counted event.
    pub(crate) fn scopes(&self) -> Vec<String> {
        lock(&self.0).keys().map(|(scope, _)| scope.clone()).collect()
    }
}

impl Observer for Counts {
    fn observe(&self, scope: &str, event: Event) {
        debug_assert!(
            !matches!(event, Event::Rejected(code) if !CODES.contains(&code)),
            "{event:?} is missing in CODES"
        );
        *lock(&self.0).entry((scope.to_owned(), event)).or_default() += 1;
    }
}
