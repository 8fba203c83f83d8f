//! The check whether a call failed because this process or its machine lacks a resource. A client could cause that, so
//! it does not mean that the store is unreachable.

use std::error::Error;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::sync::Arc;

/// Returns whether this error, or one of its causes, says that no file, memory, port or room on the disk is left.
pub(super) fn is_cause_of(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // The `source` of an `Arc` is the source of the error in it, so the error itself must be unwrapped.
        let shared = error.downcast_ref::<Arc<dyn Error + Send + Sync>>();
        let error = shared.map_or(error, |shared| &**shared);
        if error.downcast_ref::<io::Error>().is_some_and(is_shortage) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns whether this process can open no file at present. Some clients do not say why they have no connection.
pub(super) fn lacks_files() -> bool {
    // A file that always exists.
    File::open(if cfg!(windows) { "NUL" } else { "/" }).is_err_and(|error| is_shortage(&error))
}

fn is_shortage(error: &io::Error) -> bool {
    // The codes mean: too many open files in the process or on the machine, or no buffer space.
    const CODES: &[i32] = if cfg!(windows) {
        &[10024, 10055]
    } else if cfg!(target_os = "linux") {
        &[24, 23, 105]
    } else {
        &[24, 23, 55]
    };
    let kinds = [ErrorKind::OutOfMemory, ErrorKind::AddrNotAvailable, ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::error::StoreError;

    #[test]
    fn shortage_is_found_behind_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("the pool has no connection")]
        struct Pool(#[source] Arc<dyn Error + Send + Sync>);

        let without_files = || io::Error::from_raw_os_error(24);
        for error in [
            StoreError::unavailable(without_files()),
            StoreError::not_sent(Pool(Arc::new(without_files()))),
            StoreError::unavailable(io::Error::other(Pool(Arc::new(without_files())))),
        ] {
            assert!(is_cause_of(&error) && !error.is_unreachable(), "{error:?}");
        }
        let refused = StoreError::unavailable(io::Error::from(ErrorKind::ConnectionRefused));
        assert!(!is_cause_of(&refused) && refused.is_unreachable());
        assert!(!lacks_files());
    }
}
