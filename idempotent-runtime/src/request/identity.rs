//! The identity of a request, and the digest of its content.

use crate::fingerprint::builder::{FingerprintBuilder, PartDigest, RequestDigest};
use crate::fingerprint::expression::Unserialisable;
use crate::idempotency_key::IdempotencyKey;
use crate::registry::Registry;
use crate::request::admission::Admission;
use crate::request::claim_input::{ClaimInput, InputBody};

/// A request with a key, before its fingerprint is known.
pub(super) struct IdentifiedRequest {
    pub(super) admission: Admission,
    pub(super) key: IdempotencyKey,
    pub(super) identity: Identity,
    pub(super) claim_input: ClaimInput,
}

/// The caller of a request, and the value of `fingerprint = expr`.
#[derive(Default)]
pub(super) struct Identity {
    pub(super) caller: Option<String>,
    pub(super) value: Option<Result<PartDigest, Unserialisable>>,
}

impl Identity {
    /// Returns the digest of the request: of target, body or the value in its place, and of the credentials if no
    /// caller is named.
    pub(super) fn digest(&self, claim_input: &ClaimInput, registry: &Registry) -> RequestDigest {
        let of_body = match claim_input.body {
            InputBody::Read(digest) => Some(digest),
            InputBody::NotRead | InputBody::NotPermitted | InputBody::Broken(_) => None,
        };
        let mut fingerprint = FingerprintBuilder::new();
        if let Some(target) = claim_input.target {
            fingerprint.target(target);
        }
        if let Some(body) = self.value.and_then(Result::ok).or(of_body) {
            fingerprint.body(body);
        }
        if self.caller.is_none() {
            fingerprint.credentials(registry.credential_headers(), &claim_input.credentials);
        }
        fingerprint.finish()
    }
}
