//! The rejections of steps under one claim, none of which is the handler's response.

use http::StatusCode;

use crate::sync::{Mutex, lock};

/// The statuses of these rejections. A handler may have turned a rejection into a bare status, and then the response
/// shows nothing else of it.
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
