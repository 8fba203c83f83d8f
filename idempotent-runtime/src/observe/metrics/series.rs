//! Begins series before their first event: a counter that first appears with its first event shows no increase.

use crate::observe::metrics::meters::describe;
use crate::observe::metrics::scope::Scope;
use crate::observe::metrics::store;
use crate::policy::registration::written_policies;

/// Begins the series of all annotated handlers, and those of failed calls to these stores, at 0. Series that exist
/// already keep their values. No handle is kept, so that a recorder that is installed later gets the events too.
pub(crate) fn begin_series<'a>(stores: impl Iterator<Item = &'a str>) {
    describe();
    for policy in written_policies() {
        begin_series_of_scope(policy.scope());
    }
    for store in stores {
        store::begin_errors(store);
    }
}

/// Begins the series of a layer's scope.
pub(crate) fn begin_series_of_scope(scope: &str) {
    drop(Scope::new(scope));
}
