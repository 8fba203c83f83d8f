//! Finds the documented responses of an operation that may be replays.

use serde_json::{Value, json};

use crate::policy::values::Cache;

/// The statuses that a policy records.
pub(super) enum Recorded {
    /// Ranges, both ends included.
    Ranges(Vec<(u16, u16)>),
    /// Every status.
    All,
    /// The statuses that the handler's `cache_if` accepts. This may be any status.
    Predicate,
}

const ALL: &str = "all";
const PREDICATE: &str = "cache_if";

impl Recorded {
    pub(super) fn by(cache: Cache<'_>) -> Self {
        match cache {
            Cache::Statuses(ranges) => Self::Ranges(ranges.to_vec()),
            Cache::All => Self::All,
            Cache::Predicate => Self::Predicate,
        }
    }

    /// Returns the statuses in the format of the extension: `[201, "4XX", "500-503"]`, `"all"` or `"cache_if"`.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Ranges(ranges) => ranges.iter().copied().map(range_to_json).collect(),
            Self::All => json!(ALL),
            Self::Predicate => json!(PREDICATE),
        }
    }

    /// Reads the output of [`Recorded::to_json`].
    #[cfg(feature = "aide")]
    pub(super) fn from_json(statuses: &Value) -> Option<Self> {
        match statuses {
            Value::Array(ranges) => ranges.iter().map(range_from_json).collect::<Option<_>>().map(Self::Ranges),
            Value::String(word) if word == ALL => Some(Self::All),
            Value::String(word) if word == PREDICATE => Some(Self::Predicate),
            _ => None,
        }
    }

    /// Returns whether the response under `key` (`201`, `2XX` or `default`) may be a replay. `documented` contains the
    /// keys of all documented responses.
    pub(super) fn may_be(&self, key: &str, documented: &[String]) -> bool {
        let Self::Ranges(ranges) = self else { return true };
        let is_documented = |key: &str| documented.iter().any(|documented| documented.eq_ignore_ascii_case(key));
        ranges.iter().flat_map(|&(low, high)| low..=high).any(|status| {
            // The most precise documented key is the one that describes the status.
            let keys = [status.to_string(), format!("{}XX", status / 100), "default".to_owned()];
            keys.iter().find(|key| is_documented(key)).is_some_and(|of_status| of_status.eq_ignore_ascii_case(key))
        })
    }
}

/// Returns the statuses that a class or a status covers.
#[cfg(feature = "aide")]
fn covered(key: &str) -> Option<(u16, u16)> {
    if let Some(class) = key.strip_suffix("XX").or_else(|| key.strip_suffix("xx")) {
        let class: u16 = class.parse().ok()?;
        return Some((class * 100, class * 100 + 99));
    }
    key.parse().ok().map(|status| (status, status))
}

fn range_to_json((low, high): (u16, u16)) -> Value {
    if low == high {
        json!(low)
    } else if low % 100 == 0 && high == low + 99 {
        json!(format!("{}XX", low / 100))
    } else {
        json!(format!("{low}-{high}"))
    }
}

#[cfg(feature = "aide")]
fn range_from_json(range: &Value) -> Option<(u16, u16)> {
    let Some(text) = range.as_str() else {
        return range.as_u64().and_then(|status| u16::try_from(status).ok()).map(|status| (status, status));
    };
    match text.split_once('-') {
        Some((low, high)) => Some((low.parse().ok()?, high.parse().ok()?)),
        None => covered(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_with_a_recorded_status_may_be_a_replay() {
        let recorded = Recorded::by(Cache::Statuses(&[(201, 201), (402, 402), (500, 599)]));
        let documented = ["201", "404", "5XX", "default"].map(str::to_owned);
        let may_be = documented.each_ref().map(|key| recorded.may_be(key, &documented));
        assert_eq!(may_be, [true, false, true, true], "402 is among the others");
        assert!(!recorded.may_be("default", &["201", "4XX", "5XX", "default"].map(str::to_owned)));
        assert!(
            recorded.may_be("default", &["201", "4XX", "503", "default"].map(str::to_owned)),
            "500 is among the others"
        );
        let with_range = ["201", "402", "4XX", "500", "5XX"].map(str::to_owned);
        let may_be = with_range.each_ref().map(|key| recorded.may_be(key, &with_range));
        assert_eq!(may_be, [true, true, false, true, true], "402 has a response of its own");
        assert!(Recorded::by(Cache::All).may_be("404", &documented));
        assert!(Recorded::by(Cache::Predicate).may_be("default", &documented));
    }

    #[cfg(feature = "aide")]
    #[test]
    fn the_extension_says_what_is_recorded() {
        for cache in [Cache::Statuses(&[(201, 201), (400, 499), (500, 503)]), Cache::All, Cache::Predicate] {
            let json = Recorded::by(cache).to_json();
            assert_eq!(Recorded::from_json(&json).map(|recorded| recorded.to_json()), Some(json));
        }
        assert!(Recorded::from_json(&json!(["soon"])).is_none());
    }
}
