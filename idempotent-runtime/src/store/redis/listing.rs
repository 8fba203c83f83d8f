//! What operators read: pages of entries, a page of names at a time and no bodies, over a connection of their own.
//!
//! A page begins at the server's own cursor. The server returns a few names more than the page has room for. The cursor of the next
//! page has the rest.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use redis::RedisResult;

use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::store::entry::{Cursor, Entry, Page};
use crate::store::error::StoreError;
use crate::store::redis::connection::Argument;
use crate::store::redis::inner::Inner;
use crate::store::redis::node::Node;
use crate::store::redis::value;

/// How many names the server looks at in one go: it answers no other call meanwhile.
const AT_ONCE: usize = 1000;

/// How many times a page asks for names. Among many names of other programs it ends with what it has found, and its cursor goes on.
const SCANS: usize = 200;

/// After how long a page ends with what it has found: an operator who waits for it sees something.
const ENOUGH: Duration = Duration::from_millis(500);

/// How many entries are read together.
pub(super) const TOGETHER: usize = 100;

/// A place in a listing: the source of names, its cursor unless the listing has not begun there, and names that it has returned
/// already.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) source: usize,
    pub(super) scan: Option<u64>,
    names: Vec<RecordKey>,
}

impl Place {
    fn of(cursor: Option<Cursor>) -> Option<Self> {
        let Some(Cursor(text)) = cursor else { return Some(Self::default()) };
        let mut lines = text.split('\n');
        let (source, scan) = lines.next()?.split_once(' ')?;
        let scan = if scan.is_empty() { None } else { Some(scan.parse().ok()?) };
        let names = lines.map(|name| name.parse().ok()).collect::<Option<_>>()?;
        Some(Self { source: source.parse().ok()?, scan, names })
    }

    /// Where its names are from: after the last ones of a source, it is at the beginning of the next source.
    fn source_of_names(&self) -> usize {
        self.source - usize::from(self.scan.is_none() && self.source > 0)
    }

    fn cursor(&self) -> Cursor {
        let mut text = format!("{} {}", self.source, self.scan.map_or(String::new(), |scan| scan.to_string()));
        for name in &self.names {
            // A record key has no line breaks.
            text.push('\n');
            text.push_str(name.as_str());
        }
        Cursor(text)
    }
}

/// The names of this store, and of others whose prefix begins with this one.
pub(super) fn pattern(inner: &Inner) -> String {
    format!("{}*", escaped(&inner.prefix))
}

/// What a name of a listing leads to.
pub(super) type Found = (RecordKey, Result<Entry, StoreError>);

/// Names of entries, from one source after the other.
pub(super) trait Names {
    fn inner(&self) -> &Inner;

    /// How many sources there are.
    fn sources(&self) -> usize;

    /// Some names, from the server's cursor in this place on, and the next cursor: 0 at the end of the source.
    async fn some(&self, place: &Place, count: usize) -> RedisResult<(u64, Vec<Vec<u8>>)>;

    /// What the names of this source lead to; nothing for those that lead nowhere.
    async fn read(&self, source: usize, keys: Vec<RecordKey>) -> Result<Vec<Found>, StoreError>;
}

/// All names: each server is a source.
struct All<'a> {
    inner: &'a Inner,
    nodes: Vec<Node>,
}

impl Names for All<'_> {
    fn inner(&self) -> &Inner {
        self.inner
    }

    fn sources(&self) -> usize {
        self.nodes.len()
    }

    async fn some(&self, place: &Place, count: usize) -> RedisResult<(u64, Vec<Vec<u8>>)> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(place.scan.unwrap_or_default()).arg("MATCH").arg(pattern(self.inner)).arg("COUNT").arg(count);
        self.inner.operators.query_node(&self.nodes[place.source], scan).await
    }

    async fn read(&self, _source: usize, keys: Vec<RecordKey>) -> Result<Vec<Found>, StoreError> {
        let found = summaries(self.inner, &keys).await;
        Ok(keys.into_iter().zip(found).filter_map(|(key, found)| Some((key, found.transpose()?))).collect())
    }
}

pub(super) async fn page(inner: &Inner, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
    let nodes = inner.operators.nodes().await.map_err(|error| inner.error(error))?;
    page_of(&All { inner, nodes }, cursor, limit).await
}

pub(super) async fn page_of(names: &impl Names, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
    let malformed = || StoreError::unavailable("the cursor is none of this store's: begin the listing again");
    let (inner, mut place) = (names.inner(), Place::of(cursor).ok_or_else(malformed)?);
    let (mut page, mut seen, mut source) = (Page::default(), HashSet::new(), place.source_of_names());
    let (mut scans, mut fruitless, enough) = (0, 0, Deadline::after(ENOUGH));
    while page.entries.len() + page.damaged.len() < limit {
        let room = limit - page.entries.len() - page.damaged.len();
        if place.names.is_empty() {
            if place.source >= names.sources() {
                return Ok(page);
            }
            if scans == SCANS || scans > 0 && enough.is_over() {
                break;
            }
            source = place.source;
            let found = names.some(&place, (room.clamp(10, AT_ONCE) << fruitless).min(AT_ONCE)).await;
            let (next, found) = found.map_err(|error| inner.error(error))?;
            place.names = found.iter().filter_map(|name| inner.key_of(name)).collect();
            scans += 1;
            fruitless = if place.names.is_empty() { (fruitless + 1).min(10) } else { 0 };
            (place.source, place.scan) = if next == 0 { (source + 1, None) } else { (source, Some(next)) };
        }
        let some: Vec<_> = place.names.drain(..place.names.len().min(room).min(TOGETHER)).collect();
        // The server may tell a name twice.
        let some: Vec<_> = some.into_iter().filter(|key| seen.insert(key.clone())).collect();
        for (key, found) in names.read(source, some).await? {
            page.add(Some(key), found)?;
        }
        if enough.is_over() {
            break;
        }
    }
    if !place.names.is_empty() || place.source < names.sources() {
        page.next = Some(place.cursor());
    }
    Ok(page)
}

/// The entries without the responses' headers and bodies: one for each key, by one script if all can be read.
pub(super) async fn summaries(inner: &Inner, keys: &[RecordKey]) -> Vec<Result<Option<Entry>, StoreError>> {
    if !inner.is_cluster()
        && keys.len() > 1
        && let Ok(found) = ends(inner, keys).await
    {
        return keys.iter().zip(found).map(|(key, ends)| entry(key, ends)).collect();
    }
    // They are on several servers, or one of them cannot be read.
    join_all(keys.iter().map(|key| summary(inner, key))).await
}

async fn summary(inner: &Inner, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
    match ends(inner, std::slice::from_ref(key)).await?.pop() {
        Some(ends) => entry(key, ends),
        None => Ok(None),
    }
}

async fn ends(inner: &Inner, keys: &[RecordKey]) -> Result<Vec<Ends>, StoreError> {
    let names: Vec<_> = keys.iter().map(|key| inner.name(key)).collect();
    let found = inner.operators.run(&inner.scripts.summaries, &names, &ENDS).await;
    found.map_err(|error| inner.error(error))
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
            Place { source: 0, scan: None, names: Vec::new() },
            Place { source: 2, scan: Some(u64::MAX), names: names.clone() },
            Place { source: 1, scan: None, names },
        ] {
            assert_eq!(Place::of(Some(place.cursor())), Some(place));
        }
        assert_eq!(Place::of(Some(Cursor::new("charges//k"))), None);
        assert_eq!(Place::of(None), Some(Place::default()));
    }
}
