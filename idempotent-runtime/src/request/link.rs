//! The link from a request to its execution. Extractors and guards use it to find the execution that they belong to.

use std::sync::Arc;

use http::Extensions;

use crate::request::context::Execution;

/// An extension of a request: the execution of the last guard or extractor that the request reached.
struct Link {
    execution: Arc<Execution>,
    /// The guard has passed this request to its handler. A copy that a middleware in front of the guard made is not
    /// inside: it is a duplicate.
    is_inside: bool,
}

impl Link {
    /// Returns whether the next guard that the request reaches uses this execution.
    fn is_open(&self) -> bool {
        !self.is_inside
            && !self.execution.has_begun()
            && self.execution.arrival.ownership.as_ref().is_none_or(|ownership| ownership.is_open())
    }
}

/// A clone of a request's extensions belongs to another request, which may run at the same time. So the clone has its
/// own key, steps, transaction and outcome.
impl Clone for Link {
    fn clone(&self) -> Self {
        let Self { execution, is_inside } = self;
        let execution = if *is_inside { Arc::clone(execution) } else { execution.beside() };
        Self { execution, is_inside: *is_inside }
    }
}

impl Execution {
    /// Returns, for an extractor, the execution to which a request with these extensions belongs.
    pub(crate) fn of(extensions: &mut Extensions) -> Arc<Self> {
        let execution = match extensions.get::<Link>() {
            Some(link) if link.is_open() => return Arc::clone(&link.execution),
            Some(Link { execution, is_inside: true }) if execution.is_extracting() => return Arc::clone(execution),
            Some(Link { execution, is_inside: true }) if !execution.has_begun() => execution.for_extractor(),
            _ => Self::beneath(extensions),
        };
        extensions.insert(Link { execution: Arc::clone(&execution), is_inside: false });
        execution
    }

    /// Returns, for the guard of a handler, the execution of that guard.
    pub(crate) fn of_guard(extensions: &Extensions) -> Arc<Self> {
        match extensions.get::<Link>() {
            Some(link)
                if link.is_open()
                    && link.execution.arrival.ownership.as_ref().is_none_or(|ownership| ownership.take()) =>
            {
                Arc::clone(&link.execution)
            }
            _ => Self::beneath(extensions),
        }
    }

    /// Returns, for the guard of a request without a key, the execution of that guard, if an extractor has already
    /// used one.
    pub(crate) fn of_unkeyed_guard(extensions: &Extensions) -> Option<Arc<Self>> {
        extensions.get::<Link>().is_some().then(|| Self::of_guard(extensions))
    }

    /// Creates a new execution beneath the guards of a request with these extensions.
    pub(crate) fn beneath(extensions: &Extensions) -> Arc<Self> {
        let around = extensions.get::<Link>().and_then(|Link { execution, is_inside }| {
            if *is_inside { Some(Arc::clone(execution)) } else { execution.arrival.around.clone() }
        });
        Self::new(around, None)
    }

    /// Creates a new execution beneath the same guards, for a copy of the request.
    fn beside(&self) -> Arc<Self> {
        match &self.arrival.around {
            Some(around) if self.arrival.ownership.is_some() && !around.has_begun() => around.for_extractor(),
            around => Self::new(around.clone(), None),
        }
    }

    /// Creates a new execution for an extractor that runs while the last argument of this execution's handler is
    /// extracted.
    fn for_extractor(self: &Arc<Self>) -> Arc<Self> {
        Self::new(Some(Arc::clone(self)), Some(self.arrival.extractor_executions.add()))
    }

    /// Puts this guard around the request when its handler begins.
    pub(crate) fn put_around(self: &Arc<Self>, extensions: &mut Extensions) {
        self.begin();
        self.enter(extensions);
    }

    /// Puts this guard around the request: from now on, a request with these extensions is inside of the guard.
    pub(super) fn enter(self: &Arc<Self>, extensions: &mut Extensions) {
        extensions.insert(Link { execution: Arc::clone(self), is_inside: true });
    }
}
