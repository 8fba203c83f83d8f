//! Warns the developer if a `CorsLayer` is on the wrong side of the layer.

use http::HeaderMap;

use crate::policy::Policy;
use crate::record::headers::has_cross_origin_left_out;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Logs the warning once for a layer and its clones.
#[derive(Default)]
pub(super) struct CrossOriginWarning {
    is_logged: AtomicBool,
}

impl CrossOriginWarning {
    pub(super) fn warn_of(&self, headers: &HeaderMap, policy: &Policy) {
        if has_cross_origin_left_out(headers, policy) && !self.is_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                scope = policy.scope(),
                "a response beneath the layer has Access-Control headers, which are not recorded: pages of another origin cannot \
                 read replays; put the CorsLayer around the IdempotencyLayer"
            );
        }
    }
}
