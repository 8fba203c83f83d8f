//! What a registry has let happen, by scope.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::observe::event::Event;
use crate::rejection::problem::CODES;

/// A clone counts on in the same place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(Arc<Mutex<HashMap<(String, Event), usize>>>);

impl Counts {
    pub(crate) fn count(&self, scope: &str, event: Event) {
        debug_assert!(
            !matches!(event, Event::Rejected(code) if !CODES.contains(&code)),
            "{event:?} is missing in CODES"
        );
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((scope.to_owned(), event)).or_default() += 1;
    }

    pub(crate) fn of(&self, scope: &str, event: Event) -> usize {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&(scope.to_owned(), event)).copied().unwrap_or_default()
    }
}
