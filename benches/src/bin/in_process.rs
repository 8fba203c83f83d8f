//! Nanoseconds of a request, in process: the bare handler, this guard and its peers take turns in one run.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bytes::Bytes;
use idempotent_benches::charge::{CHARGES, HELD, order, runs};
use idempotent_benches::contenders::{Contender, held_runs};
use idempotent_benches::peers::{self, CONTENDERS};
use idempotent_benches::report::{Section, Table, figure, median};
use idempotent_benches::scenario::{Scenario, key};

const ROUNDS: usize = 24;

/// The series of the keys of held requests, which no round has.
const HELD_SERIES: usize = 0xfffe;

/// The first series of the keys of requests before a round of first executions.
const WARM_SERIES: usize = 0x4000;

/// How long one round may take. A duplicate that is not rejected would wait forever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The contenders by their place in `peers::all`.
const OURS: usize = 1;
const RUSTANGO: usize = 3;
const IDEMPOTENT: usize = 5;

/// The sizes of the bodies, and the number of requests in a round.
const SIZES: [(usize, usize); 3] = [(200, 2_000), (10_000, 600), (1_000_000, 16)];

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    // Runs on a worker thread, as the requests of a connection do: tasks that are spawned there need not wake another
    // thread.
    let mut section = tokio::spawn(measure(rounds)).await.expect("the measurement ends");
    in_block_on(&mut section, rounds).await;
    section.print();
}

/// The times of one scenario at one size: for each contender, the mean of each round.
struct Times(Vec<Vec<f64>>);

impl Times {
    fn over_bare(&self, index: usize) -> f64 {
        median(self.0[index].iter().zip(&self.0[0]).map(|(a, b)| a - b).collect())
    }

    fn ratio(&self, index: usize, to: usize) -> f64 {
        median(self.0[index].iter().zip(&self.0[to]).map(|(a, b)| a / b).collect())
    }
}

async fn measure(rounds: usize) -> Section {
    let mut section = Section::new("In process");
    section.text.push(
        "One request after another through an axum router on one worker of tokio's, with stores in memory. The handler takes \
         an order as JSON and answers 201 with a receipt of the same fields and 150 bytes more. Each round visits all \
         contenders in another order. The figures are the medians of the rounds' differences and quotients. \
         `axum-idempotent` has no lock: its rejected duplicates are replays. A request without a key is a plain execution."
            .to_owned(),
    );
    section.text.push(
        "*By hand* is the limit: the same steps in the same order, written into the handler around a map behind a lock. It has \
         no lease and no token, loses a request whose client leaves, never deletes a record and has no limits. A guard that \
         extracts, digests and records cannot cost less than this over the bare handler."
            .to_owned(),
    );
    let mut summary = Table::new(
        "What a request costs with the guard: over the bare handler, and as a part of what it costs with each peer (below 1: \
         the guard is faster)",
        &["path", "over bare", "of rustango", "of axum-idempotent", "of idempotent", "of by hand"],
    );
    for (size, requests) in SIZES {
        let mut table = Table::new(
            &format!("Bodies of {size} bytes: medians of {rounds} alternating rounds of {requests} requests"),
            &["", "bare handler", "#[idempotent]", "by hand", "rustango", "axum-idempotent", "idempotent"],
        );
        for scenario in Scenario::ALL {
            let times = times(scenario, size, requests, rounds).await;
            let cell =
                |index| format!("{:+} ns ({} ×)", times.over_bare(index).round(), figure(times.ratio(index, 0), ""));
            let bare = figure(median(times.0[0].clone()), "ns");
            table.row([scenario.name().to_owned(), bare].into_iter().chain((1..CONTENDERS).map(cell)));
            let peers = [RUSTANGO, 4, IDEMPOTENT, 2].map(|peer| figure(times.ratio(OURS, peer), "×"));
            let path = format!("{}, {}", scenario.name(), of_bytes(size));
            summary.row([path, cell(OURS)].into_iter().chain(peers));
            compare(&mut section, scenario, size, &times);
        }
        section.tables.push(table);
    }
    section.summary = Some(summary);
    section
}

fn of_bytes(size: usize) -> String {
    match size {
        1_000_000.. => format!("{} MB", size / 1_000_000),
        1_000.. => format!("{} kB", size / 1_000),
        _ => format!("{size} B"),
    }
}

/// Measures all contenders, who take turns.
async fn times(scenario: Scenario, size: usize, requests: usize, rounds: usize) -> Times {
    let body = order(size);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); CONTENDERS];
    for round in 0..rounds {
        let contenders = peers::all().await;
        // Each of them comes first equally often, and each of two neighbours comes before the other.
        let mut order: Vec<_> = (0..CONTENDERS).map(|index| (index + round / 2) % CONTENDERS).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let contender = &contenders[index];
            let nanos = nanos(contender, scenario, &body, requests, round);
            let nanos = tokio::time::timeout(PATIENCE, nanos).await;
            times[index].push(nanos.unwrap_or_else(|_| panic!("{}: {} hangs", contender.name, scenario.name())));
        }
    }
    Times(times)
}

/// Compares the guard with its targets.
fn compare(section: &mut Section, scenario: Scenario, size: usize, times: &Times) {
    let mut at_most = |limit, measured, unit| {
        section.at_most(
            &format!("{} in memory, {}, over bare", scenario.name(), of_bytes(size)),
            limit,
            measured,
            unit,
        );
    };
    let (over, ratio) = (times.over_bare(OURS), times.ratio(OURS, 0));
    match (scenario, size) {
        (Scenario::First, 200) => {
            at_most(2_000.0, over, "ns");
            // axum-idempotent has no lock.
            let fastest = times.over_bare(RUSTANGO).min(times.over_bare(IDEMPOTENT));
            section.at_most("the same, over what the fastest peer with a lock adds", 0.5, over / fastest, "×");
        }
        (Scenario::First, 10_000) => at_most(1.5, ratio, "×"),
        (Scenario::First, _) => at_most(1.2, ratio, "×"),
        (Scenario::Replay, 200) => at_most(100.0, over, "ns"),
        (Scenario::Replay, 10_000) => at_most(0.6, ratio, "×"),
        (Scenario::Replay, _) => at_most(0.25, ratio, "×"),
        (Scenario::NoKey, 200) => at_most(1.05, ratio, "×"),
        (Scenario::NoKey | Scenario::RejectedDuplicate, _) => {}
    }
}

/// Measures requests that are called in `block_on`, which is not a worker thread, against those of a worker. Must be
/// called in `block_on`.
async fn in_block_on(section: &mut Section, rounds: usize) {
    let (size, requests) = SIZES[0];
    let body = order(size);
    let mut table = Table::new(
        &format!(
            "Bodies of {size} bytes, called in `block_on`: medians of {rounds} alternating rounds of {requests} requests"
        ),
        &["", "on a worker", "in `block_on`", "ratio"],
    );
    for scenario in [Scenario::First, Scenario::Replay] {
        let (mut on_worker, mut here) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for side in [round % 2, (round + 1) % 2] {
                // Both sides have one store, which must not have the records of the other side.
                let (contender, body) = (Contender::ours().await, body.clone());
                let nanos = async move { nanos(&contender, scenario, &body, requests, round).await };
                if side == 0 {
                    on_worker.push(tokio::spawn(nanos).await.expect("the requests are answered"));
                } else {
                    here.push(nanos.await);
                }
            }
        }
        let ratio = median(here.iter().zip(&on_worker).map(|(here, worker)| here / worker).collect());
        let [worker, here] = [on_worker, here].map(|times| figure(median(times), "ns"));
        table.row([scenario.name().to_owned(), worker, here, figure(ratio, "×")]);
        section.at_most(&format!("{} in `block_on`, over one on a worker", scenario.name()), 1.1, ratio, "×");
    }
    section.tables.push(table);
}

/// The mean time of a request in one round.
async fn nanos(contender: &Contender, scenario: Scenario, body: &Bytes, requests: usize, round: usize) -> f64 {
    let is_rejected = scenario == Scenario::RejectedDuplicate && contender.locks;
    let (path, expected) = if is_rejected { (HELD, StatusCode::CONFLICT) } else { (CHARGES, StatusCode::CREATED) };
    let runs_before = held_runs();
    // Each round of each size has its own key: the earlier handlers still run, although their clients have left.
    let held = key(HELD_SERIES, runs_before);
    let holder = is_rejected.then(|| {
        let (contender, body, held) = (contender.clone(), body.clone(), held.clone());
        tokio::spawn(async move { contender.answer(HELD, Some(&held), body).await })
    });
    if is_rejected {
        // Wait until the first request holds the key, so that the second one is rejected.
        while held_runs() == runs_before {
            tokio::task::yield_now().await;
        }
    } else {
        let key = key(round, requests + 1);
        contender.send(CHARGES, Some(&key), body.clone(), StatusCode::CREATED).await;
    }
    let replayed = key(round, requests + 1);
    if scenario == Scenario::First {
        // Tables that grow would cost a contender more that begins with a new one.
        for number in 0..requests {
            contender.send(path, Some(&key(WARM_SERIES + round, number)), body.clone(), expected).await;
        }
    }
    let runs_of_handler = runs();
    let begun = Instant::now();
    for number in 0..requests {
        let fresh = key(round, number);
        let key = match scenario {
            Scenario::First => Some(&*fresh),
            Scenario::Replay => Some(&*replayed),
            Scenario::NoKey => None,
            Scenario::RejectedDuplicate => Some(&*held),
        };
        contender.send(path, key, body.clone(), expected).await;
    }
    let nanos = begun.elapsed().as_nanos() as f64 / requests as f64;
    // A contender that ignored the key would answer with the same status.
    let runs_of_handler = runs() - runs_of_handler;
    let runs_expected = if matches!(scenario, Scenario::First | Scenario::NoKey) { requests } else { 0 };
    if !contender.is_bare() && scenario != Scenario::RejectedDuplicate {
        assert_eq!(runs_of_handler, runs_expected, "{}: {}", contender.name, scenario.name());
    }
    if let Some(holder) = holder {
        holder.abort();
    }
    nanos
}
