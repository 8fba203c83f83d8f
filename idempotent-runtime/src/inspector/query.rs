//! The parameters of the page, of its forms and of the JSON interface. They are validated strictly.

use serde::Deserialize;

use crate::inspector::problem::Problem;
use crate::key::RecordKey;
use crate::operate::entry_view::State;
use crate::operate::masking::{Keys, visible};

/// The parameters as they are received. A form sends its empty fields too.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EntryQuery {
    pub(super) action: Option<String>,
    store: Option<String>,
    scope: Option<String>,
    caller: Option<String>,
    key: Option<String>,
    record_key: Option<String>,
    id: Option<String>,
    state: Option<String>,
    limit: Option<String>,
    reveal: Option<String>,
    confirm: Option<String>,
    outcome: Option<String>,
    status: Option<String>,
    headers: Option<String>,
    body: Option<String>,
    ttl: Option<String>,
    reason: Option<String>,
}

/// The fields of a resolution, as they are received.
#[derive(Clone, Default)]
pub(super) struct Said {
    pub(super) outcome: Option<String>,
    pub(super) status: Option<String>,
    pub(super) headers: Option<String>,
    pub(super) body: Option<String>,
    pub(super) ttl: Option<String>,
    pub(super) reason: Option<String>,
}

/// The validated parameters.
#[derive(Clone, Default)]
pub(super) struct Selection {
    /// The name of the store; `None` for the default store.
    pub(super) store: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) state: Option<State>,
    pub(super) target: Option<Target>,
    pub(super) limit: usize,
    pub(super) keys: Keys,
    /// The confirmation of a purge or a resolution.
    pub(super) confirm: Option<String>,
    pub(super) said: Said,
}

/// Names one entry.
#[derive(Clone)]
pub(super) enum Target {
    /// The record key of the entry, before the registry digests the key.
    Key(RecordKey),
    /// The id of the entry. To find the id, the inspector reads the entries of the store.
    Id(String),
}

/// How many entries are read by default.
pub(super) const DEFAULT_LIMIT: usize = 10_000;
pub(super) const LARGEST_LIMIT: usize = 1_000_000;

impl EntryQuery {
    /// Validates parameters from a URL. Logs and browser histories keep URLs, so a URL with a key is rejected.
    pub(super) fn in_address(self) -> Result<Selection, Problem> {
        let is_said = [&self.outcome, &self.status, &self.headers, &self.body, &self.ttl, &self.reason];
        if is_said.into_iter().any(Option::is_some) {
            return Err(Problem::bad_request(
                "finding_in_address",
                "a response does not belong in an address, which logs keep: send it as a form by POST",
            ));
        }
        if self.key.is_some() || self.caller.is_some() || self.record_key.is_some() {
            return Err(Problem::bad_request(
                "key_in_address",
                "a key and its caller do not belong in an address, which logs keep: send them as a form by POST",
            ));
        }
        self.selection()
    }

    pub(super) fn selection(self) -> Result<Selection, Problem> {
        let given = |field: Option<String>| field.filter(|text| !text.is_empty());
        let (mut scope, key) = (given(self.scope), given(self.key));
        let target = match (key, given(self.record_key), given(self.id)) {
            (None, None, None) => None,
            (None, None, Some(id)) => Some(Target::id(&id)?),
            (None, Some(text), None) => Some(Target::Key(
                text.parse::<RecordKey>()
                    .map_err(|error| Problem::bad_request("malformed_record_key", error.to_string()))?,
            )),
            (Some(key), None, None) => {
                // The scope belongs to the key here, and does not filter the overview.
                let scope = scope.take().ok_or_else(|| {
                    Problem::bad_request("missing_scope", "a key belongs to a scope: give `scope` too")
                })?;
                Some(Target::Key(RecordKey::new(&scope, given(self.caller).as_deref(), &key)))
            }
            _ => {
                return Err(Problem::bad_request(
                    "several_keys",
                    "give one of `key`, `record_key` and `id`, not several",
                ));
            }
        };
        let state = given(self.state).map(|name| name.parse::<State>()).transpose();
        Ok(Selection {
            store: given(self.store).filter(|name| name != crate::inspector::DEFAULT_STORE),
            scope,
            state: state.map_err(|error| Problem::bad_request("unknown_state", visible(&error.to_string())))?,
            target,
            limit: limit(given(self.limit).as_deref())?,
            keys: match given(self.reveal).as_deref() {
                None => Keys::Masked,
                Some("keys") => Keys::Revealed,
                Some(_) => return Err(Problem::bad_request("unknown_reveal", "write `reveal=keys`, or leave it out")),
            },
            confirm: given(self.confirm),
            said: Said {
                outcome: given(self.outcome),
                status: given(self.status),
                headers: given(self.headers),
                body: given(self.body),
                ttl: given(self.ttl),
                reason: given(self.reason),
            },
        })
    }
}

impl Target {
    pub(super) fn id(id: &str) -> Result<Self, Problem> {
        let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| Self::Id(id.to_ascii_lowercase())).ok_or_else(|| {
            Problem::bad_request("malformed_id", "an id has 32 hexadecimal digits, as the listings show it")
        })
    }
}

fn limit(text: Option<&str>) -> Result<usize, Problem> {
    let Some(text) = text else { return Ok(DEFAULT_LIMIT) };
    text.parse().ok().filter(|limit| (1..=LARGEST_LIMIT).contains(limit)).ok_or_else(|| {
        Problem::bad_request("bad_limit", format!("`limit` is a number of entries from 1 to {LARGEST_LIMIT}"))
    })
}
