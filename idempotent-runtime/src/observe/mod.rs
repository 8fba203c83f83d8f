//! The engine's logs, spans and metrics. Without the feature `metrics`, the metrics do nothing.

pub(crate) mod event;
#[cfg(feature = "metrics")]
pub mod metrics;
pub(crate) mod op;
#[cfg(feature = "opentelemetry")]
pub(crate) mod open_telemetry;
#[cfg(not(feature = "metrics"))]
pub(crate) mod silent;
pub(crate) mod start_up;
pub(crate) mod telemetry;
pub(crate) mod traceparent;

#[cfg(feature = "metrics")]
pub(crate) use crate::observe::metrics::in_flight::{InFlight, WithoutClient};
#[cfg(feature = "metrics")]
pub(crate) use crate::observe::metrics::meters::{lease_lost, mismatched, outcome, replayed, step_failed};
#[cfg(feature = "metrics")]
pub(crate) use crate::observe::metrics::series::{begin_series, begin_series_of_scope};
#[cfg(feature = "metrics")]
pub(crate) use crate::observe::metrics::store::StoreMeter;
#[cfg(not(feature = "metrics"))]
pub(crate) use crate::observe::silent::*;
