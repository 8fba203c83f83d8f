//! The listings for operators: pages of entries without bodies, read one page of names at a time over a connection of
//! their own.
//!
//! A page begins at the server's own cursor. The server returns a few names more than the page has room for. The cursor
//! of the next page contains the rest.

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

/// The number of names that the server scans at once. It answers no other call meanwhile.
const AT_ONCE: usize = 1000;

/// The largest number of scans for one page. A page among many names of other programs ends with the entries found so
/// far, and its cursor continues.
const SCANS: usize = 200;

/// The time after which a page ends with the entries found so far, so that a waiting operator sees a result.
const ENOUGH: Duration = Duration::from_millis(500);

/// The number of entries that are read together.
pub(super) const TOGETHER: usize = 100;

/// A place in a listing: the source of names, its cursor unless the listing is at the beginning of the source, and
/// names that the source has already returned.
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

    /// Returns the source of the names. After the last names of a source, the place is at the beginning of the next
    /// source.
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

/// Returns a pattern for the names of this store. It also matches names of stores whose prefix begins with this one.
pub(super) fn pattern(inner: &Inner) -> String {
    format!("{}*", escaped(&inner.prefix))
}

/// A key of a listing, and its entry.
pub(super) type Found = (RecordKey, Result<Entry, StoreError>);

/// The names of entries, from one source after the other.
pub(super) trait Names {
    fn inner(&self) -> &Inner;

    /// Returns the number of sources.
    fn sources(&self) -> usize;

    /// Returns some names from the server's cursor in this place on, and the next cursor, which is 0 at the end of the
    /// source.
    async fn some(&self, place: &Place, count: usize) -> RedisResult<(u64, Vec<Vec<u8>>)>;

    /// Reads the entries of these keys of this source. Keys without an entry are left out.
    async fn read(&self, source: usize, keys: Vec<RecordKey>) -> Result<Vec<Found>, StoreError>;
}

/// All names. Each server is a source.
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
        // The server may return a name twice.
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

/// Returns the entries without the responses' headers and bodies, one result for each key. One script reads them if it
/// can read all.
pub(super) async fn summaries(inner: &Inner, keys: &[RecordKey]) -> Vec<Result<Option<Entry>, StoreError>> {
    if !inner.is_cluster()
        && keys.len() > 1
        && let Ok(found) = ends(inner, keys).await
    {
        return keys.iter().zip(found).map(|(key, ends)| entry(key, ends)).collect();
    }
    // The entries are on several servers, or one of them cannot be read.
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

/// The first and the last bytes of a value, the remaining time to live, and the server's time.
type Ends = (Option<Vec<u8>>, Vec<u8>, i64, i64);

const ENDS: [Argument<'static>; 2] = [Argument::Millis(value::HEAD as u64), Argument::Millis(value::TAIL as u64)];

fn entry(key: &RecordKey, (head, tail, left, now): Ends) -> Result<Option<Entry>, StoreError> {
    head.map(|head| value::summary(key.clone(), &head, &tail, left, now)).transpose()
}

/// Returns a pattern that matches only this prefix.
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
