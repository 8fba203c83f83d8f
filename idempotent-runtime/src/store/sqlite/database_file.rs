//! The path of a file, and the check whether it is still the file that this process has open.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::error::StoreError;

/// Returns the number of the file at this path, or `None` if there is no file. On systems other than Unix, a file
/// cannot be replaced while it is open, so all files have one number.
#[cfg(unix)]
pub(super) fn inode(path: &Path) -> Option<i64> {
    use std::os::unix::fs::MetadataExt as _;

    std::fs::metadata(path).ok().map(|file| file.ino().cast_signed())
}

#[cfg(not(unix))]
pub(super) fn inode(path: &Path) -> Option<i64> {
    path.exists().then_some(0)
}

/// The database file as it was opened.
pub(super) struct DatabaseFile {
    path: PathBuf,
    inode: Option<i64>,
    is_reported: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
#[error("the SQLite file was moved, deleted or replaced while it was open: put it back, or restart the process")]
pub(super) struct Moved;

impl From<Moved> for StoreError {
    fn from(moved: Moved) -> Self {
        Self::unavailable(moved)
    }
}

impl DatabaseFile {
    pub(super) fn new(path: &str) -> Self {
        let path = PathBuf::from(path);
        let inode = inode(&path);
        Self { path, inode, is_reported: AtomicBool::new(false) }
    }

    /// Fails if the next process would open another file, and so would never read the writes of this process.
    pub(super) fn check(&self) -> Result<(), Moved> {
        let is_there = inode(&self.path) == self.inode;
        let was_reported = self.is_reported.swap(!is_there, Ordering::Relaxed);
        if !is_there && !was_reported {
            tracing::error!(
                path = %self.path.display(),
                "the SQLite file was moved, deleted or replaced while it was open: requests with a key get 503 until it is \
                 put back or the process is restarted"
            );
        }
        if is_there { Ok(()) } else { Err(Moved) }
    }
}
