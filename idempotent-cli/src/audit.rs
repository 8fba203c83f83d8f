//! The audit of resolutions: one line of JSON for each requested resolution, with the fields of the inspector's audit
//! events.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

use idempotent_runtime::operate::{EntryView, masked, visible_json};
use serde::Serialize;

use crate::failure::Failure;

/// The destination of the lines.
pub(crate) enum Audit {
    Stderr,
    /// A file. It is opened before anything is changed, so nothing is changed if it cannot be opened.
    File(File),
}

/// The contents of one line.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    at: String,
    action: &'a str,
    outcome: &'a str,
    by: String,
    store: &'a str,
    scope: Option<String>,
    caller_digest: Option<String>,
    key: Option<String>,
    id: Option<String>,
    state: &'a str,
    status: Option<u16>,
    reason: String,
}

/// The fields that are the same before and after the resolution.
pub(crate) struct Asked<'a> {
    pub(crate) by: &'a str,
    pub(crate) store: &'a str,
    pub(crate) view: &'a EntryView,
    pub(crate) status: Option<u16>,
    pub(crate) reason: &'a str,
    /// Whether the caller of the entry is already a digest.
    pub(crate) digested: bool,
}

impl Audit {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Stderr) };
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map(Self::File).map_err(|source| Failure::Audit { path: path.to_owned(), source })
    }

    pub(crate) fn tell(&mut self, line: &Line<'_>) -> io::Result<()> {
        let text = visible_json(&serde_json::to_string(line).map_err(io::Error::other)?) + "\n";
        match self {
            Self::Stderr => io::stderr().lock().write_all(text.as_bytes()),
            Self::File(file) => file.write_all(text.as_bytes()).and_then(|()| file.sync_data()),
        }
    }
}

impl Asked<'_> {
    pub(crate) fn ended<'a>(&'a self, outcome: &'a str) -> Line<'a> {
        let key = self.view.key();
        let caller = key.and_then(|key| {
            let stored = if self.digested { key.clone() } else { key.digested() };
            stored.caller().map(Into::into)
        });
        Line {
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            action: "resolve",
            outcome,
            by: self.by.to_owned(),
            store: self.store,
            scope: key.map(|key| key.scope().into()),
            caller_digest: caller,
            key: key.map(|key| masked(&key.key())),
            id: self.view.id(),
            state: self.view.state().as_str(),
            status: self.status,
            reason: self.reason.to_owned(),
        }
    }
}
