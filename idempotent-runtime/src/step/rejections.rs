//! The rejections of the steps under one claim. Such a rejection is never recorded as the handler's response.

use http::StatusCode;

use crate::sync::{Mutex, lock};

/// The statuses of these rejections. A handler may turn a rejection into a bare status. Then the status is all that the
/// response shows of the rejection.
#[derive(Default)]
pub(crate) struct StepRejections(Mutex<Vec<StatusCode>>);

impl StepRejections {
    pub(crate) fn add(&self, status: StatusCode) {
        let mut statuses = lock(&self.0);
        if !statuses.contains(&status) {
            statuses.push(status);
        }
    }

    pub(crate) fn contain(&self, status: StatusCode) -> bool {
        lock(&self.0).contains(&status)
    }
}
