//! The functions of the metrics, for a program without the feature `metrics`. They count nothing.
//!
//! They replace the functions of the feature. Without them, each of some thirty calls would need a `cfg`.

use std::time::SystemTime;

use crate::observe::op::Op;

pub(crate) struct InFlight;

impl InFlight {
    pub(crate) fn begin(_scope: &str) -> Self {
        Self
    }
}

pub(crate) struct WithoutClient;

impl WithoutClient {
    pub(crate) fn begin(_scope: &str) -> Self {
        Self
    }
}

pub(crate) struct StoreMeter;

#[expect(clippy::unused_self, reason = "its counterpart has something to keep")]
impl StoreMeter {
    pub(crate) fn new(_store: &str) -> Self {
        Self
    }

    pub(crate) fn measure<C>(&self, _: Op, call: C) -> C {
        call
    }

    pub(crate) fn measure_now<T>(&self, _: Op, call: impl FnOnce() -> T) -> T {
        call()
    }
}

pub(crate) fn outcome(_scope: &str, _outcome: &'static str) {}

pub(crate) fn mismatched(_scope: &str, _differs: &'static str, _header: &str) {}

pub(crate) fn step_failed(_scope: &str, _outcome: &'static str) {}

pub(crate) fn begin_series<'a>(_stores: impl Iterator<Item = &'a str>) {}

pub(crate) fn begin_series_of_scope(_scope: &str) {}

pub(crate) fn lease_lost(_scope: &str) {}

pub(crate) fn replayed(_recorded_at: SystemTime) {}
