//! What a thief of a store's files would find in them.

use std::fs;
use std::path::Path;

use axum::body::Bytes;
use memchr::memmem;

/// All bytes of the files of a store.
pub struct Dump(Vec<u8>);

impl Dump {
    /// Reads every file in the folder and in its subfolders.
    ///
    /// # Panics
    ///
    /// When the files are empty or missing.
    pub fn of(folder: &Path) -> Self {
        let mut bytes = Vec::new();
        read_all(folder, &mut bytes);
        assert!(!bytes.is_empty(), "{} holds nothing", folder.display());
        Self(bytes)
    }

    /// Whether the files contain the secret: in plain text, in hexadecimal digits, or as a whole value in base64.
    pub fn shows(&self, secret: &str) -> bool {
        let hexadecimal = format!("{:x}", Bytes::copy_from_slice(secret.as_bytes()));
        // The last base64 group depends on the bytes that follow, so only a whole value can be found.
        let base64 = base64(secret.as_bytes());
        [secret, &hexadecimal, &base64].into_iter().any(|form| self.has(form.as_bytes()))
    }

    /// Whether the files contain these bytes.
    pub fn has(&self, bytes: &[u8]) -> bool {
        memmem::find(&self.0, bytes).is_some()
    }
}

/// Ignores files that vanish meanwhile: files come and go while a server runs.
fn read_all(folder: &Path, bytes: &mut Vec<u8>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, bytes);
        } else if path.is_file() {
            bytes.extend(fs::read(&path).unwrap_or_default());
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;

    base64::prelude::BASE64_STANDARD_NO_PAD.encode(&bytes[..bytes.len() - bytes.len() % 3])
}
