//! From a thousand records to ten million: the memory for each record, the time of a claim, and the longest pause.

use std::time::{Duration, Instant};

use anyhow::bail;
use idempotent_runtime::store::MemoryStore;
use serde::{Deserialize, Serialize};

use super::Scale;
use super::child::{Task, outcome};
use super::map::Map;
use super::pauses::{self, Longest, Pauses, Tide, WAVES};
use super::records::{enter, found_nanos, fresh_nanos, immediate, numbered, payload_bytes, resident_bytes};
use crate::engines::sample::record;
use crate::report::{Section, Table, figure, median};

const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// The results of the process for one size.
#[derive(Serialize, Deserialize)]
pub(super) struct Records {
    /// The resident memory of the process in bytes for each record.
    resident: f64,
    /// The bytes for each record, as the store counts them.
    counted: f64,
    /// The nanoseconds of a claim with its completion. `found` has those of a claim that finds a record.
    fresh: f64,
    found: f64,
    pauses: Pauses,
}

/// The time that is allowed for each record at first. A busy machine needs more.
const PACE_NANOS: u64 = 3_500;

/// Fills a store and measures it, in a process that has done nothing else; `None` if filling took longer than `pace`
/// allows.
pub(super) async fn records(size: usize, pace: u64) -> Option<Records> {
    let record = record();
    let store = MemoryStore::builder().max_bytes(usize::MAX).build();
    let before = resident_bytes();
    let tide = Tide::new(size, Duration::from_nanos(pace));
    let begun = Instant::now();
    for number in 0..size {
        if !tide.is_to_come() {
            return None;
        }
        enter(immediate(&store), &numbered(number), &record, tide.ttl(number));
    }
    let resident = (resident_bytes() as f64 - before as f64) / size as f64;
    let counted = store.used_bytes() as f64 / size as f64;
    eprintln!("{size} records: filled in {:.1} s", begun.elapsed().as_secs_f64());
    let (fresh, found) = (fresh_nanos(&store).await, found_nanos(&store, size));
    if !tide.is_to_come() {
        return None;
    }
    let pauses = pauses::measure(&store, &tide).await;
    Some(Records { resident, counted, fresh, found, pauses })
}

fn records_of(size: usize) -> anyhow::Result<Records> {
    for pace in [PACE_NANOS, 2 * PACE_NANOS, 4 * PACE_NANOS] {
        if let Some(records) = outcome::<Option<Records>>(&Task::Records { size, pace })? {
            return Ok(records);
        }
        eprintln!("{size} records: the first ones expired too early; once more, with more time");
    }
    bail!("this machine cannot enter {size} records within {} ns each", 4 * PACE_NANOS)
}

/// All sizes, each in a separate process.
pub(super) fn measure(section: &mut Section, scale: Scale) -> anyhow::Result<()> {
    let payload = payload_bytes() as f64;
    let sizes: Vec<usize> = SIZES.into_iter().filter(|&size| size as f64 <= 1e7 * scale.0.clamp(1e-3, 1.0)).collect();
    let mut memory = Table::new(
        &format!("Bytes a record beyond its payload of {payload} bytes"),
        &["records", "of the process", "by `used_bytes`"],
    );
    let mut times = Table::new(
        "Nanoseconds a call, on one thread, and how often that is what it is with a thousand records",
        &["records", "claim and completion", "`HashMap` insertion", "claim of a record", "`HashMap` look-up"],
    );
    let mut longest = Table::new(
        &format!("Milliseconds of the longest claim of many fresh keys: medians of {WAVES} tries"),
        &["records", "some expiring", "of its own", "none expiring", "of its own", "s to free a fifth"],
    );
    let mut measured = Vec::new();
    for &size in &sizes {
        let records = records_of(size)?;
        let map: Map = outcome(&Task::Map(size))?;
        memory.row([size.to_string(), figure(records.resident - payload, ""), figure(records.counted - payload, "")]);
        let pick = |longest: &[Longest], pick: fn(&Longest) -> f64| median(longest.iter().map(pick).collect());
        let Pauses { expiring, quiet, freed_in } = &records.pauses;
        longest.row([
            size.to_string(),
            figure(pick(expiring, |longest| longest.wall), ""),
            figure(pick(expiring, |longest| longest.own), ""),
            figure(pick(quiet, |longest| longest.wall), ""),
            figure(pick(quiet, |longest| longest.own), ""),
            figure(median(freed_in.clone()), ""),
        ]);
        eprintln!("{size} records: {:?}", records.pauses);
        measured.push((size, records, map));
    }
    let Some((_, least, least_map)) = measured.first() else { return Ok(()) };
    for (size, records, map) in &measured {
        let cells = [
            (records.fresh, least.fresh),
            (map.insert, least_map.insert),
            (records.found, least.found),
            (map.look_up, least_map.look_up),
        ];
        let cells = cells.map(|(nanos, least)| format!("{} ({})", figure(nanos, "ns"), figure(nanos / least, "×")));
        times.row(std::iter::once(size.to_string()).chain(cells));
    }
    let Some((size, most, map)) = measured.last() else { return Ok(()) };
    let what = |what: &str| format!("{size} records: {what}");
    section.at_most(&what("bytes each beyond the payload"), 160.0, most.resident - payload, "B");
    let (fresh, insert) = (most.fresh / least.fresh, map.insert / least_map.insert);
    section.at_most(&what("growth of a claim with completion, of a map's insertion"), 1.0, fresh / insert, "×");
    let (found, look_up) = (most.found / least.found, map.look_up / least_map.look_up);
    section.at_most(&what("growth of a claim of a record, of a map's look-up"), 1.0, found / look_up, "×");
    let own = most.pauses.expiring.iter().map(|longest| longest.own).collect();
    section.at_most(&what("longest claim while some expire"), 1.0, median(own), "ms");
    section.tables.extend([memory, times, longest]);
    section.text.push(TEXT.to_owned());
    Ok(())
}

const TEXT: &str = "Each size in a process of its own: records of status 201 with two headers, 300 bytes of JSON and a \
     key of 36 characters, entered one after another by claim and completion. What they take is the growth of the \
     process's resident memory (`/proc/self/statm`), which contains what the allocator adds. A claim takes longer among \
     more records because what it reads is no longer in a cache: the standard library's map of as many values, with \
     `String` keys, one lock and no rule less, shows by how much, so the targets compare the growth of both. The records \
     expire in five parts, each of them all at once; meanwhile a thread claims and releases fresh keys without a rest, and its \
     longest claim stands beside its longest one in a time, of two seconds at most, in which nothing expires. Of its own means \
     without the time for which the kernel kept that thread, and the one of the process beside it that it kept longest and that \
     may have held the lock, from a processor (`/proc/self/task/*/schedstat`).";
