//! Assertions about replays.

use std::fmt::Write;

use http::{HeaderMap, header};

use crate::record::headers::REPLAYED;

/// Asserts that these are the headers of a replay.
///
/// # Panics
///
/// Panics if they are not. The message shows the headers.
///
/// # Examples
///
/// ```
/// use axum::http::{HeaderMap, HeaderValue};
/// use idempotent_runtime::testing::assert_replayed;
///
/// let headers = HeaderMap::from_iter([("idempotent-replayed".parse().unwrap(), HeaderValue::from_static("true"))]);
/// assert_replayed(&headers);
/// ```
#[track_caller]
pub fn assert_replayed(headers: &HeaderMap) {
    assert!(
        is_replay(headers),
        "expected a replay, which has the header `idempotent-replayed: true`; {}",
        found(headers)
    );
}

/// Asserts that these headers do not mark a replay.
///
/// # Panics
///
/// Panics if they mark a replay.
#[track_caller]
pub fn assert_not_replayed(headers: &HeaderMap) {
    assert!(
        !headers.contains_key(&REPLAYED),
        "expected a response that is no replay, which has no header `idempotent-replayed`; {}",
        found(headers)
    );
}

fn is_replay(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(&REPLAYED).iter();
    lines.next().is_some_and(|line| line == "true") && lines.next().is_none()
}

fn found(headers: &HeaderMap) -> String {
    let lines: Vec<_> = headers.get_all(&REPLAYED).iter().collect();
    let mut found = match lines.as_slice() {
        [] => "found none: the handler ran, or the request was rejected".to_owned(),
        [line] => format!("found `idempotent-replayed: {}`", String::from_utf8_lossy(line.as_bytes())),
        lines => format!("found {} lines of it: {lines:?}", lines.len()),
    };
    if let Some(content_type) = headers.get(header::CONTENT_TYPE) {
        let _ = write!(found, " (`content-type: {}`)", String::from_utf8_lossy(content_type.as_bytes()));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|&(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value))).collect()
    }

    fn message(assertion: fn(&HeaderMap), lines: &[(&'static str, &'static str)]) -> String {
        let headers = headers(lines);
        let panic = catch_unwind(|| assertion(&headers)).expect_err("it does not hold");
        panic.downcast_ref::<String>().expect("a message").clone()
    }

    #[test]
    fn each_message_names_what_was_found() {
        let rejected = message(assert_replayed, &[("content-type", "application/problem+json")]);
        assert!(
            rejected.ends_with("or the request was rejected (`content-type: application/problem+json`)"),
            "{rejected}"
        );
        let other = message(assert_replayed, &[("idempotent-replayed", "false")]);
        assert!(other.ends_with("found `idempotent-replayed: false`"), "{other}");
        let twice = message(assert_replayed, &[("idempotent-replayed", "true"), ("idempotent-replayed", "true")]);
        assert!(twice.contains("found 2 lines"), "{twice}");
        let replayed = message(assert_not_replayed, &[("idempotent-replayed", "true")]);
        assert!(replayed.ends_with("found `idempotent-replayed: true`"), "{replayed}");
        assert_not_replayed(&headers(&[("content-type", "text/plain")]));
    }
}
