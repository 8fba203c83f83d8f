//! A request with a key: all data that its claim needs, and the comparison with another request that has the key.

use axum::response::Response;
use http::HeaderName;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::difference::Difference;
use crate::key::RecordKey;
use crate::lease::state::RunningHandler;
use crate::observe::telemetry;
use crate::record::envelope::Place;
use crate::record::fingerprints::{Compared, Fingerprints, incomparable};
use crate::registry::Registry;
use crate::rejection::problem::{IN_FLIGHT, Rejection, UNAVAILABLE};
use crate::request::admission::Admission;
use crate::request::guarded_run::Permits;
use crate::store::claim::ClaimRequest;
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;

/// A request with all data that its claim needs.
pub(super) struct KeyedRequest {
    pub(super) admission: Admission,
    pub(super) registry: Registry,
    pub(super) store: StoreHandle,
    /// The record key that the store gets: digested, if the registry is configured so.
    pub(super) stored_key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) fingerprints: Fingerprints,
    /// True if a caller is named, so that credentials are not part of the fingerprint.
    pub(super) is_partitioned: bool,
    /// The token that a drain waits for. Dropped when the request begins to wait for another request.
    pub(super) running: Option<TaskTrackerToken>,
    pub(super) permits: Permits,
    /// The rejection if the request cannot run. Its key may have a response nevertheless.
    pub(super) beyond_limit: Option<Rejection>,
}

impl KeyedRequest {
    pub(super) fn running_here(&self) -> Option<RunningHandler> {
        self.registry.renewer().running(&self.store, &self.stored_key, |stored| self.is_same(stored))
    }

    /// Returns the place where the record is stored.
    pub(super) fn place(&self) -> Place<'_> {
        Place { store: self.store.name(), key: &self.stored_key }
    }

    pub(super) fn is_same(&self, fingerprint: Fingerprint) -> bool {
        self.registry.at_rest().is_same(&self.fingerprints, fingerprint)
    }

    /// Rejects the request, because the store's data under this key cannot be read or compared.
    pub(super) fn reject_damaged(&self, error: &StoreError) -> Response {
        telemetry::claim_failed(&self.admission.policy, self.store.name(), error);
        self.admission.reject(UNAVAILABLE)
    }

    /// Rejects the request, because the key belongs, as far as is known, to another request. `fingerprint` is that of
    /// the other request.
    pub(super) fn reject_other(&self, fingerprint: Fingerprint) -> Response {
        let at_rest = self.registry.at_rest();
        self.admission.reject(match at_rest.compare(&self.fingerprints, fingerprint, self.credential_headers()) {
            Compared::Other(difference) => {
                telemetry::other_request(self.admission.policy.scope(), &difference);
                match difference {
                    Difference::Credentials(_) => Rejection::OtherCredentials,
                    Difference::Target | Difference::Body => Rejection::KeyReused,
                }
            }
            Compared::Incomparable(id) => return self.reject_damaged(&incomparable(id)),
            // The handler of this process has ended in the meantime.
            Compared::Same => IN_FLIGHT,
        })
    }

    /// Returns the headers whose credentials are part of the fingerprint.
    fn credential_headers(&self) -> &[HeaderName] {
        if self.is_partitioned { &[] } else { self.registry.credential_headers() }
    }
}
