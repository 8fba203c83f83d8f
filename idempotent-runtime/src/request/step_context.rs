//! The data that an execution keeps for steps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::{Method, Uri};

use crate::step::names::Names;
use crate::step::rejections::StepRejections;
use crate::step::steps::Steps;

/// The data that an execution keeps for the steps that are taken through it or recorded under its claim.
#[derive(Default)]
pub(super) struct StepContext {
    /// Identifies the execution among those that take steps.
    id: OnceLock<u64>,
    pub(super) names: Names,
    /// Set when a handler begins to run under a claim.
    pub(super) steps: OnceLock<Steps>,
    /// The method and the URI of the request from which `Idempotency` was first extracted.
    pub(super) target: OnceLock<Box<(Method, Uri)>>,
    pub(super) rejections: OnceLock<Arc<StepRejections>>,
}

impl StepContext {
    pub(super) fn id(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        *self.id.get_or_init(|| NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
