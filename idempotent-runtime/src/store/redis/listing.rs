//! What operators read: pages of entries, a page of names at a time and no bodies, over a connection of their own.
//!
//! A page begins at the server's own cursor. The server returns a few names more than the page has room for. The cursor of the next
//! page has the rest.

use std::collections::HashSet;

use futures_util::future::join_all;

use crate::key::RecordKey;
use crate::store::entry::{Cursor, Entry, Page};
use crate::store::error::StoreError;
use crate::store::redis::connection::Argument;
use crate::store::redis::store::RedisStore;
use crate::store::redis::value;

/// How many names the server looks at in one go: it answers no other call meanwhile.
const AT_ONCE: usize = 1000;

/// How many entries are read together.
const TOGETHER: usize = 100;

/// A place in a listing: the server, its cursor unless the listing has not begun there, and names that it has returned already.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    node: usize,
    scan: Option<u64>,
    names: Vec<RecordKey>,
}

impl Place {
    fn of(cursor: Option<Cursor>) -> Option<Self> {
        let Some(Cursor(text)) = cursor else { return Some(Self::default()) };
        let mut lines = text.split('\n');
        let (node, scan) = lines.next()?.split_once(' ')?;
        let scan = if scan.is_empty() { None } else { Some(scan.parse().ok()?) };
        let names = lines.map(|name| name.parse().ok()).collect::<Option<_>>()?;
        Some(Self { node: node.parse().ok()?, scan, names })
    }

    fn cursor(&self) -> Cursor {
        let mut text = format!("{} {}", self.node, self.scan.map_or(String::new(), |scan| scan.to_string()));
        for name in &self.names {
            // A record key has no line breaks.
            text.push('\n');
            text.push_str(name.as_str());
        }
        Cursor(text)
    }
}

impl RedisStore {
    /// The names of this store, and of others whose prefix begins with this one.
    pub(super) fn pattern(&self) -> String {
        format!("{}*", escaped(&self.0.prefix))
    }

    pub(super) async fn page(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        let malformed = || StoreError::unavailable("the cursor is none of this store's: begin the listing again");
        let mut place = Place::of(cursor).ok_or_else(malformed)?;
        let nodes = self.0.operators.nodes().await.map_err(|error| self.error(error))?;
        let (mut page, mut seen) = (Page::default(), HashSet::new());
        while page.entries.len() + page.damaged.len() < limit {
            let room = limit - page.entries.len() - page.damaged.len();
            if place.names.is_empty() {
                let Some(node) = nodes.get(place.node) else { return Ok(page) };
                let mut scan = redis::cmd("SCAN");
                scan.arg(place.scan.unwrap_or_default()).arg("MATCH").arg(self.pattern());
                scan.arg("COUNT").arg(room.clamp(10, AT_ONCE));
                let answer = self.0.operators.query_node::<(u64, Vec<Vec<u8>>)>(node, scan).await;
                let (next, found) = answer.map_err(|error| self.error(error))?;
                place.names = found.iter().filter_map(|name| self.key_of(name)).collect();
                (place.node, place.scan) = if next == 0 { (place.node + 1, None) } else { (place.node, Some(next)) };
            }
            let some: Vec<_> = place.names.drain(..place.names.len().min(room).min(TOGETHER)).collect();
            // The server may tell a name twice.
            let some: Vec<_> = some.into_iter().filter(|key| seen.insert(key.clone())).collect();
            for (key, found) in some.iter().zip(self.summaries(&some).await) {
                if let Some(found) = found.transpose() {
                    page.add(Some(key.clone()), found)?;
                }
            }
        }
        if !place.names.is_empty() || place.node < nodes.len() {
            page.next = Some(place.cursor());
        }
        Ok(page)
    }

    /// One for each, in one round trip if all can be read.
    async fn summaries(&self, keys: &[RecordKey]) -> Vec<Result<Option<Entry>, StoreError>> {
        let runs: Vec<_> = keys.iter().map(|key| (self.name(key), ENDS.to_vec())).collect();
        match self.0.operators.run_many::<Ends>(&self.0.scripts.summary, &runs).await {
            Some(Ok(answers)) => keys.iter().zip(answers).map(|(key, ends)| entry(key, ends)).collect(),
            // Read them one by one: the server does not know the script, or one of the values cannot be read.
            _ => join_all(keys.iter().map(|key| self.summary(key))).await,
        }
    }

    /// The entry without the response's headers and body.
    pub(super) async fn summary(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let answer = self.0.operators.run(&self.0.scripts.summary, &[self.name(key)], &ENDS).await;
        entry(key, answer.map_err(|error| self.error(error))?)
    }
}

/// The beginning and the end of a value, what is left of its life, and how late it is.
type Ends = (Option<Vec<u8>>, Vec<u8>, i64, i64);

const ENDS: [Argument<'static>; 2] = [Argument::Millis(value::HEAD as u64), Argument::Millis(value::TAIL as u64)];

fn entry(key: &RecordKey, (head, tail, left, now): Ends) -> Result<Option<Entry>, StoreError> {
    head.map(|head| value::summary(key.clone(), &head, &tail, left, now)).transpose()
}

/// A prefix as a pattern that matches it alone.
fn escaped(prefix: &str) -> String {
    prefix.chars().fold(String::new(), |mut pattern, char| {
        if "*?[]^-\\".contains(char) {
            pattern.push('\\');
        }
        pattern.push(char);
        pattern
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_survives_its_cursor() {
        let names = vec![RecordKey::new("charges", None, "k1"), RecordKey::new("a b", Some("c\n"), "k 2")];
        for place in [
            Place { node: 0, scan: None, names: Vec::new() },
            Place { node: 2, scan: Some(u64::MAX), names: names.clone() },
            Place { node: 1, scan: None, names },
        ] {
            assert_eq!(Place::of(Some(place.cursor())), Some(place));
        }
        assert_eq!(Place::of(Some(Cursor::new("charges//k"))), None);
        assert_eq!(Place::of(None), Some(Place::default()));
    }
}
