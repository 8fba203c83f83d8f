//! Formats numbers, times and addresses for people.

use std::time::{Duration, SystemTime};

use maud::{Markup, Render, html};

use crate::inspector::query::{DEFAULT_LIMIT, Selection};
use crate::operate::entry_view::{EntryView, State};
use crate::operate::masking::{Keys, visible};

/// How many characters of a text are shown: callers may have any length.
const LONGEST: usize = 120;

/// Text from clients, made visible and shortened.
pub(super) fn text(text: &str) -> String {
    let length = text.chars().count();
    if length <= LONGEST {
        return visible(text);
    }
    let beginning: String = text.chars().take(LONGEST).collect();
    format!("{}… ({length} characters)", visible(&beginning))
}

/// A number such as `10,000`.
pub(super) fn number(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// A duration in its two largest units.
pub(super) fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let seconds = span.as_secs();
    let Some(largest) = UNITS.iter().position(|&(unit, _)| seconds >= unit) else {
        return format!("{} ms", span.as_millis());
    };
    let (unit, name) = UNITS[largest];
    let rest =
        UNITS.get(largest + 1).map(|&(next, name)| (seconds % unit / next, name)).filter(|&(count, _)| count > 0);
    let rest = rest.map_or_else(String::new, |(count, name)| format!(" {count} {name}"));
    format!("{} {name}{rest}", seconds / unit)
}

/// How long ago, together with the exact time.
pub(super) fn age(entry_view: &EntryView, stamp: Option<&str>) -> Markup {
    // The clock of another process may be ahead of this process's clock.
    let passed = entry_view.since().map(|since| SystemTime::now().duration_since(since).unwrap_or_default());
    let ago = if entry_view.state() == State::InFlight { "" } else { " ago" };
    html! {
        @match (passed, stamp) {
            (Some(passed), Some(stamp)) => time datetime=(stamp) title=(stamp) { (span(passed)) (ago) },
            _ => "unknown",
        }
    }
}

pub(super) fn title(state: State) -> &'static str {
    match state {
        State::OutcomeUnknown => "Outcome unknown",
        State::Damaged => "Damaged",
        State::PastLease => "Past its lease",
        State::InFlight => "In flight",
        State::Completed => "Completed",
        State::ResponseNotRecorded => "Response not recorded",
    }
}

/// What happens to the next request with such a key.
pub(super) fn meaning(state: State) -> &'static str {
    match state {
        State::OutcomeUnknown => {
            "The handler crashed or panicked, and must not run again. Retries get 409 until an operator settles or purges the key."
        }
        State::Damaged => "The entry cannot be read. Requests with this key get 503 until it is purged.",
        State::PastLease => {
            "The process died or is paused. The next retry runs the handler again, as the next attempt."
        }
        State::InFlight => "A handler is running. A duplicate waits or gets 409.",
        State::Completed => "A response is recorded. A retry gets it back.",
        State::ResponseNotRecorded => "The response was too large to record. A retry gets 409.",
    }
}

/// A label that is readable without its colour.
pub(super) fn badge(state: State) -> Markup {
    html! { span class={ "badge " (state) } { (title(state)) } }
}

/// A URL of the page, with these parameters instead of the current ones.
pub(super) struct Link<'a> {
    pub(super) selection: &'a Selection,
    pub(super) store: Option<&'a str>,
    pub(super) state: Option<State>,
    pub(super) id: Option<&'a str>,
    pub(super) limit: usize,
    pub(super) keys: Keys,
    pub(super) fragment: &'a str,
}

impl<'a> Link<'a> {
    pub(super) fn of(selection: &'a Selection) -> Self {
        let store = selection.store.as_deref();
        let Selection { state, limit, keys, .. } = *selection;
        Self { selection, store, state, id: None, limit, keys, fragment: "" }
    }
}

impl Render for Link<'_> {
    fn render_to(&self, buffer: &mut String) {
        let mut query = Vec::new();
        let mut add = |name: &str, value: &str| {
            query.push(format!(
                "{name}={}",
                percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
            ));
        };
        if let Some(store) = self.store {
            add("store", store);
        }
        if let Some(scope) = &self.selection.scope {
            add("scope", scope);
        }
        if let Some(state) = self.state {
            add("state", state.as_str());
        }
        if let Some(id) = self.id {
            add("id", id);
        }
        if self.limit != DEFAULT_LIMIT {
            add("limit", &self.limit.to_string());
        }
        if self.keys == Keys::Revealed {
            add("reveal", "keys");
        }
        format!("?{}{}", query.join("&"), self.fragment).as_str().render_to(buffer);
    }
}
