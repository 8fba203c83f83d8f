//! Ends a claim whose lease has expired, with the outcome that an operator has found out.

use crate::layer::made::policies_of_layers;
use crate::operate::audit::Resolving;
use crate::operate::entry_view::EntryView;
use crate::operate::finding::{Finding, InvalidFinding, Limits};
use crate::policy::Policy;
use crate::registry::Registry;
use crate::store::entry::{Entry, EntryState};
use crate::store::error::StoreError;
use crate::store::resolution::{Resolution, Resolved};

/// Why a key was not resolved, as far as is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The registry has no store of this name.
    #[error("the registry has no store named {0:?}")]
    UnknownStore(String),
    /// The finding is invalid. Nothing has changed.
    #[error(transparent)]
    Invalid(#[from] InvalidFinding),
    /// The store failed, or did not accept the response. After [`StoreError::Unavailable`] and [`StoreError::TimedOut`]
    /// the key may or may not be resolved: read its entry again.
    #[error("the store has failed")]
    Store(#[source] StoreError),
}

impl Registry {
    /// Resolves a request whose outcome is unknown: its retries get the response of the finding, or the next retry runs
    /// the handler.
    ///
    /// `store` is the name of the store; `None` means the default store. `entry` is the entry that the operator read,
    /// as [`StoreAdmin::get`](crate::store::StoreAdmin::get) or [`list`](crate::store::StoreAdmin::list) returned it.
    /// Only that claim is resolved, and only if its lease has expired by the store's clock. If another operator was
    /// faster, or the claim was renewed or taken over since then, nothing changes, and the returned value says so. A
    /// claim under `after_crash = "rerun"` whose lease has expired can be resolved too, before a retry runs its handler
    /// again.
    ///
    /// The response is recorded as if the handler had returned it. The record gets the fingerprint of the claim, so
    /// that a different request with the key is still rejected with 422. The record is sealed if the registry seals. If
    /// the handler continues later, its client gets `claim_lost`, and its response is dropped. Requests that wait for
    /// the key are woken.
    ///
    /// A record is never changed, not even a record without a body
    /// ([`State::ResponseNotRecorded`](crate::operate::State::ResponseNotRecorded)): its outcome is known. A running
    /// handler with a `Tx` has no entry. If such a handler holds a key whose claim is resolved as executed, its
    /// transaction is rolled back at its end. The claims of steps are resolved by their own keys, with the result of
    /// the step as JSON.
    ///
    /// Every call is an event of the target [`AUDIT_TARGET`](crate::operate::AUDIT_TARGET).
    ///
    /// # Errors
    ///
    /// [`ResolveError`] says why the key was not resolved.
    ///
    /// # Cancel safety
    ///
    /// If the call is dropped, the key may or may not be resolved: read its entry again.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use idempotent_runtime::Fingerprint;
    /// use http::Response;
    /// use idempotent_runtime::operate::Finding;
    /// use idempotent_runtime::store::{AfterCrash, ClaimRequest, MemoryStore, Resolved, Store, StoreAdmin, Token};
    /// use idempotent_runtime::{RecordKey, Registry};
    ///
    /// let store = MemoryStore::new();
    /// let registry = Registry::new(store.clone());
    /// let key = RecordKey::new("charges", Some("alice"), "8e03978e");
    /// # let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32]));
    /// # let request = request.with_lease(Duration::ZERO).with_after_crash(AfterCrash::Reject);
    /// # store.claim(&key, request).await?;
    ///
    /// // The handler crashed, and the provider has its charge.
    /// let entry = store.get(&key).await?.expect("the claim is there");
    /// let receipt = Response::builder().status(201).body(r#"{"id":"ch_17"}"#)?;
    /// let finding = Finding::executed(receipt, "the provider has ch_17").by("alice");
    /// assert_eq!(registry.resolve(None, &entry, &finding).await?, Resolved::Yes);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    pub async fn resolve(
        &self,
        store: Option<&str>,
        entry: &Entry,
        finding: &Finding,
    ) -> Result<Resolved, ResolveError> {
        let audit = Resolving {
            by: finding.operator(),
            reason: Some(finding.reason()),
            status: finding.status().map(|status| status.as_u16()),
            store: store.unwrap_or("default"),
            keys_are_digests: self.at_rest().digest_keys,
        };
        let resolved = self.try_to_resolve(store, entry, finding).await;
        let outcome = match &resolved {
            Ok(Resolved::Yes) if finding.status().is_some() => "resolved_as_executed",
            Ok(Resolved::Yes) => "resolved_as_not_executed",
            Ok(Resolved::StillRunning) => "still_running",
            Ok(Resolved::ChangedHands) => "changed_hands",
            Err(ResolveError::Store(_)) => "failed",
            Err(ResolveError::UnknownStore(_)) => "rejected: unknown_store",
            Err(ResolveError::Invalid(_)) => "rejected: invalid_finding",
        };
        let view = EntryView::new(entry.clone(), None);
        audit.ended(Some(&entry.key), view.id().as_deref(), Some(view.state()), outcome);
        resolved
    }

    async fn try_to_resolve(
        &self,
        name: Option<&str>,
        entry: &Entry,
        finding: &Finding,
    ) -> Result<Resolved, ResolveError> {
        let store =
            self.store_named(name).ok_or_else(|| ResolveError::UnknownStore(name.unwrap_or_default().into()))?;
        let EntryState::Claimed { token, .. } = entry.state else {
            return Err(ResolveError::Invalid(InvalidFinding::IsRecord));
        };
        let limits = self.limits_of(&entry.key.scope());
        let resolution: Resolution = finding.resolution_at_rest(entry, store.name(), self.at_rest(), limits)?;
        let resolved = store.resolve(&entry.key, token, resolution).await.map_err(ResolveError::Store);
        if !matches!(resolved, Ok(Resolved::StillRunning)) {
            // The claim may have ended even if the call failed.
            self.ended_claims().notify(&entry.key);
        }
        resolved
    }

    /// Returns the largest limits of the scope's handlers and layers, or the defaults.
    fn limits_of(&self, scope: &str) -> Limits {
        let of_layers = policies_of_layers();
        let policies = self.policies().chain(of_layers.iter().map(|policy| &**policy));
        let of_scope: Vec<&Policy> = policies.filter(|policy| policy.scope() == scope).collect();
        let defaults = Limits::default();
        Limits {
            ttl: of_scope.iter().map(|policy| policy.ttl()).max().unwrap_or(defaults.ttl),
            max_body: of_scope.iter().map(|policy| policy.max_body()).max().unwrap_or(defaults.max_body),
        }
    }
}
