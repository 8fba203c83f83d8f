//! Nanoseconds of a request, in process: the bare handler, this guard and its peers take turns in one run.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bytes::Bytes;
use idempotent_benches::charge::{CHARGES, HELD, order};
use idempotent_benches::contenders::{Contender, held_runs};
use idempotent_benches::peers::{self, CONTENDERS};
use idempotent_benches::report::{Section, Table, figure, median};
use idempotent_benches::scenario::{Scenario, key};

const ROUNDS: usize = 21;

/// How long one round may take. A duplicate that is not rejected would wait forever.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    // Runs on a worker thread, as the requests of a connection do: tasks that are spawned there need not wake another
    // thread.
    tokio::spawn(measure(rounds)).await.expect("the measurement ends").print();
}

async fn measure(rounds: usize) -> Section {
    let mut section = Section::new("In process");
    section.text.push(
        "One request after another through an axum router on one worker of tokio's, with stores in memory. The handler takes \
         an order as JSON and answers 201 with a receipt of the same fields and 150 bytes more. Each round visits all of them \
         in another order; what is told is the median of the rounds' differences and quotients. A request without a key, and \
         the rejected duplicates of `axum-idempotent`, which has no lock, are what they are for it: plain executions and \
         replays."
            .to_owned(),
    );
    section.text.push(
        "By hand is the limit: the same steps in the same order, written into the handler around a map behind a lock. It has no \
         lease and no token, loses a request whose client leaves, never forgets a record and bounds nothing; what it costs over \
         the bare handler, a guard that extracts first, digests and records cannot do without."
            .to_owned(),
    );
    for (size, requests) in [(200, 2_000), (10_000, 600), (1_000_000, 16)] {
        let body = order(size);
        let mut table = Table::new(
            &format!("Bodies of {size} bytes: medians of {rounds} alternating rounds of {requests} requests"),
            &["", "bare handler", "#[idempotent]", "by hand", "rustango", "axum-idempotent", "idempotent"],
        );
        for scenario in Scenario::ALL {
            let mut times: Vec<Vec<f64>> = vec![Vec::new(); CONTENDERS];
            for round in 0..rounds {
                let contenders = peers::all().await;
                // Each of them comes first equally often.
                for index in (0..CONTENDERS).map(|index| (index + round) % CONTENDERS) {
                    let contender = &contenders[index];
                    let nanos = nanos(contender, scenario, &body, requests, round);
                    let nanos = tokio::time::timeout(PATIENCE, nanos).await;
                    times[index]
                        .push(nanos.unwrap_or_else(|_| panic!("{}: {} hangs", contender.name, scenario.name())));
                }
            }
            let over_bare = |index: usize| median(times[index].iter().zip(&times[0]).map(|(a, b)| a - b).collect());
            let ratio = |index: usize| median(times[index].iter().zip(&times[0]).map(|(a, b)| a / b).collect());
            let cells = (1..CONTENDERS)
                .map(|index| format!("{:+} ns ({} ×)", over_bare(index).round(), figure(ratio(index), "")));
            table.row([scenario.name().to_owned(), figure(median(times[0].clone()), "ns")].into_iter().chain(cells));
            if size == 200 {
                match scenario {
                    Scenario::First => {
                        section.at_most("first execution in memory, over bare", 1_000.0, over_bare(1), "ns");
                        section.at_most(
                            "first execution in memory, over what Rustango adds",
                            1.0,
                            over_bare(1) / over_bare(3),
                            "×",
                        );
                    }
                    Scenario::Replay => section.at_most("replay in memory, over bare", 1.0, ratio(1), "×"),
                    Scenario::NoKey => section.at_most("no key, over bare", 1.03, ratio(1), "×"),
                    Scenario::RejectedDuplicate => {}
                }
            }
        }
        section.tables.push(table);
    }
    section
}

/// The mean time of a request in one round.
async fn nanos(contender: &Contender, scenario: Scenario, body: &Bytes, requests: usize, round: usize) -> f64 {
    let is_rejected = scenario == Scenario::RejectedDuplicate && contender.locks;
    let (path, expected) = if is_rejected { (HELD, StatusCode::CONFLICT) } else { (CHARGES, StatusCode::CREATED) };
    let runs_before = held_runs();
    let holder = is_rejected.then(|| {
        let (contender, body) = (contender.clone(), body.clone());
        tokio::spawn(async move { contender.answer(HELD, Some("8e03978e-40d5-43dd-bc93-6894a57f9324"), body).await })
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
    let begun = Instant::now();
    for number in 0..requests {
        let fresh = key(round, number);
        let key = match scenario {
            Scenario::First => Some(&*fresh),
            Scenario::Replay => Some(&*replayed),
            Scenario::NoKey => None,
            Scenario::RejectedDuplicate => Some("8e03978e-40d5-43dd-bc93-6894a57f9324"),
        };
        contender.send(path, key, body.clone(), expected).await;
    }
    let nanos = begun.elapsed().as_nanos() as f64 / requests as f64;
    if let Some(holder) = holder {
        holder.abort();
    }
    nanos
}
