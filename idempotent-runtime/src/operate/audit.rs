//! The audit events: what operators did, and to which entry.

use crate::key::RecordKey;
use crate::operate::entry_view::State;
use crate::operate::masking::{masked, visible};

/// The `target` of the audit events. Route it to your audit log.
///
/// | field | |
/// |---|---|
/// | `action` | `purge`, `resolve` or `reveal_keys` |
/// | `outcome` | of a purge: `purged`, `nothing_there`, `failed`, `rejected: …`. Of a resolution: `resolved_as_executed`, `resolved_as_not_executed`, `still_running`, `changed_hands`, and those of a purge. Of `reveal_keys`: `shown` |
/// | `by` | the name of the operator, or `unknown` |
/// | `store` | the name of the store in the registry |
/// | `scope`, `caller_digest`, `key`, `id` | of a purge and a resolution: the entry. The key is [`masked`](crate::operate::masked). The caller is the digest of [`RecordKey::digested`](crate::RecordKey::digested), or as it is stored if the registry stores digests |
/// | `state` | of a purge and a resolution: the state of the entry before |
/// | `reason`, `status` | of a resolution: why the operator says so, and the status that retries get from now on |
pub const AUDIT_TARGET: &str = "idempotent::audit";

/// Returns a name or a reason for the log, always on one line.
pub(crate) fn line(text: Option<&str>) -> String {
    text.map_or_else(|| "unknown".to_owned(), visible)
}

/// Returns the digest of the entry's caller, as the audit events contain it.
pub(crate) fn caller_digest(key: &RecordKey, keys_are_digests: bool) -> Option<String> {
    if keys_are_digests { key.caller().map(Into::into) } else { key.digested().caller().map(Into::into) }
}

/// A requested resolution. [`Resolving::ended`] logs how it ended.
#[derive(Clone, Copy)]
pub(crate) struct Resolving<'a> {
    pub(crate) by: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) status: Option<u16>,
    pub(crate) store: &'a str,
    pub(crate) keys_are_digests: bool,
}

impl Resolving<'_> {
    pub(crate) fn ended(&self, key: Option<&RecordKey>, id: Option<&str>, state: Option<State>, outcome: &str) {
        tracing::warn!(
            target: AUDIT_TARGET,
            action = "resolve",
            outcome,
            by = line(self.by),
            store = self.store,
            scope = key.map(|key| visible(&key.scope())),
            caller_digest = key.and_then(|key| caller_digest(key, self.keys_are_digests)),
            key = key.map(|key| masked(&key.key())),
            id = id.map(visible),
            state = state.map(State::as_str),
            status = self.status,
            reason = self.reason.map(visible),
            "a resolution was requested"
        );
    }
}
