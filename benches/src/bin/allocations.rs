//! Counts the allocations of a request, in process: with the bare handler, with this guard, and with its peers.

use axum::http::StatusCode;
use idempotent_benches::charge::{CHARGES, order};
use idempotent_benches::contenders::Contender;
use idempotent_benches::peers;
use idempotent_benches::report::{Section, Table};
use idempotent_benches::scenario::{Scenario, key};
use tokio::runtime::Runtime;

/// Enough requests that the growth of a table does not change the median.
const REQUESTS: usize = 301;

/// How many first executions run before: ten for each shard of the store in memory, because the first entries of a
/// shard allocate memory for the shard too.
const EARLIER: usize = 40_960;

/// A number that no scenario has.
const EARLIER_SERIES: usize = 0xffff;

fn main() {
    // Everything runs on this thread, whose allocations are counted, including those of spawned tasks.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let contenders = runtime.block_on(peers::all());
    let mut section = Section::new("Allocations in process");
    section.text.push(format!(
        "Counted by `allocation-counter` on the one thread that everything runs on; medians of {REQUESTS} requests with \
         bodies of 200 bytes, after {EARLIER} first executions by each. Making the request and reading the response count \
         too, for all of them. On an empty store in memory a first execution allocates twice more, until each of the 4,096 \
         parts of its table has an entry."
    ));
    let columns: Vec<_> = std::iter::once("").chain(contenders.iter().map(|contender| contender.name)).collect();
    let mut table = Table::new("Allocations a request", &columns);
    contenders.iter().for_each(|contender| fill(&runtime, contender));
    for scenario in [Scenario::First, Scenario::Replay, Scenario::NoKey] {
        let counts: Vec<u64> = contenders.iter().map(|contender| allocations(&runtime, contender, scenario)).collect();
        table.row(std::iter::once(scenario.name().to_owned()).chain(counts.iter().map(u64::to_string)));
        let over_bare = counts[1] as f64 - counts[0] as f64;
        match scenario {
            Scenario::First => section.at_most("allocations of a first execution, over bare", 10.0, over_bare, ""),
            Scenario::Replay => section.at_most("allocations of a replay, over bare", -5.0, over_bare, ""),
            Scenario::NoKey | Scenario::RejectedDuplicate => {}
        }
    }
    section.tables.push(table);
    section.print();
}

fn fill(runtime: &Runtime, contender: &Contender) {
    let body = order(200);
    runtime.block_on(async {
        for number in 0..EARLIER {
            contender.send(CHARGES, Some(&key(EARLIER_SERIES, number)), body.clone(), StatusCode::CREATED).await;
        }
    });
}

/// The median number of allocations.
fn allocations(runtime: &Runtime, contender: &Contender, scenario: Scenario) -> u64 {
    let body = order(200);
    let recorded = key(scenario as usize, REQUESTS);
    let send = |key: Option<&str>| {
        allocation_counter::measure(|| {
            runtime.block_on(contender.send(CHARGES, key, body.clone(), StatusCode::CREATED));
        })
    };
    send(Some(&recorded));
    let mut counts: Vec<u64> = (0..REQUESTS)
        .map(|number| {
            let fresh = key(scenario as usize, number);
            let key = match scenario {
                Scenario::First => Some(&*fresh),
                Scenario::Replay | Scenario::RejectedDuplicate => Some(&*recorded),
                Scenario::NoKey => None,
            };
            send(key).count_total
        })
        .collect();
    counts.sort_unstable();
    counts[REQUESTS / 2]
}
