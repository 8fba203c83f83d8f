//! A policy in use. The policy of a handler lives as long as the program. The policy of a layer lives as long as it is
//! used.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use http::response;

use crate::policy::{CacheIf, Policy};

#[derive(Clone)]
pub(crate) enum PolicyHandle {
    Handler(&'static Policy),
    Layer(Arc<Policy>),
    /// The policy of a handler, changed by its registry.
    Overridden {
        written: &'static Policy,
        policy: Arc<Policy>,
    },
}

impl PolicyHandle {
    pub(crate) fn is_of_layer(&self) -> bool {
        matches!(self, Self::Layer(_))
    }

    /// Returns whether other policies may have the same scope. For a layer the library cannot know this, so the answer
    /// is always true.
    pub(crate) fn may_share_scope(&self) -> bool {
        match self {
            Self::Handler(policy) => policy.shared_scope(),
            Self::Layer(_) => true,
            Self::Overridden { policy, .. } => policy.shared_scope(),
        }
    }

    /// Returns the address of the policy as it was written for its handler or layer, even if a registry changed it.
    pub(crate) fn address(&self) -> *const Policy {
        match self {
            Self::Handler(written) | Self::Overridden { written, .. } => std::ptr::from_ref(*written),
            Self::Layer(policy) => Arc::as_ptr(policy),
        }
    }

    /// Returns whether a response with this head is recorded, by its status or else by the predicate.
    pub(crate) fn admits(&self, cache_if: Option<CacheIf>, parts: &response::Parts) -> bool {
        // A retry cannot get an interim response.
        !parts.status.is_informational()
            && self.cache().admits(parts.status).or_else(|| cache_if.map(|admits| admits(parts))).unwrap_or(false)
    }
}

impl Deref for PolicyHandle {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        match self {
            Self::Handler(policy) => policy,
            Self::Layer(policy) | Self::Overridden { policy, .. } => policy,
        }
    }
}

impl fmt::Debug for PolicyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
