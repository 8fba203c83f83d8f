//! Measurements over loopback HTTP: the servers and the load generator are separate processes.

pub mod places;
pub mod request;
pub mod server;
pub mod wrk;

use std::time::Instant;

use self::places::Places;
use self::request::{Sizes, Template, warm_up};
use self::server::{Contender, Server};
use self::wrk::{Outcome, Retries, Wrk};
use crate::report::{Curve, Section, Table, figure, median};

/// The number of rounds of each side.
const ROUNDS: usize = 5;

const CONNECTIONS: u32 = 64;

/// The number of rounds of each point of a curve.
const CURVE_ROUNDS: usize = 3;

const LOADS: [u32; 5] = [1, 4, 16, 64, 256];

/// The medians over several runs.
type Medians = Outcome;

/// Runs all measurements, in rounds of this many seconds.
///
/// # Errors
///
/// When wrk is not installed, a server does not start, or an answer is not the expected one.
pub fn measure(seconds: u32) -> anyhow::Result<Section> {
    let begun = Instant::now();
    let bench = Bench::open(seconds)?;
    let mut section = Section::new("Over loopback");
    let curve_seconds = seconds.div_ceil(2);
    section.text.push(format!(
        "The load comes from {} over {CONNECTIONS} connections that are kept alive, with HTTP/1.1. A request has 200 bytes of \
         JSON, and its response has the status 201 and 300 bytes. The bare and the guarded handler run in processes of their \
         own (`axum::serve`) and get the same bytes. There are {ROUNDS} rounds of {seconds} s a side. The sides alternate, and \
         every other round begins with the other side. The figures are medians of the rounds; a ratio is the median of the \
         rounds' ratios. With 5 % retries, every 20th request repeats a key that the same thread has used 1010 requests \
         before. With 100 % retries, each request repeats one of a hundred recorded keys. A run fails if one status is not \
         201, if a connection breaks, or if the number of received bytes is not that of the expected replays.",
        bench.wrk.version
    ));
    section.text.push(
        "*By hand* is the limit in memory: the guard that is described under *In process*, which keeps fewer promises than any \
         store. With a near cache (`RegistryBuilder::near_cache`), a process replays its own records for one minute without a \
         call of the store. Here all retries reach the same process; in a deployment, several processes share them."
            .to_owned(),
    );
    section.text.push(bench.places.description()?);
    section.text.push(format!(
        "wrk, the server, and Redis or PostgreSQL share {} cores. Both sides pay for the load, so the ratios are nearer to 1 \
         than the ratios in process. A store in another process takes its time from the server. The processor time is that of \
         the server's process for one request, including the kernel's work for it; other programs disturb it less than the \
         other figures. Each connection sends its next request when it has its answer, so the latency follows from the \
         throughput. wrk corrects its percentiles: it adds the requests that it could not send while an answer was late. In \
         such short rounds, the high percentiles come from few slow requests, and p99.9 shows the machine's scheduler more \
         than the guard.",
        std::thread::available_parallelism().map_or(1, usize::from)
    ));
    bench.series(&mut section)?;
    bench.curves(&mut section, curve_seconds)?;
    eprintln!("loopback: done in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(section)
}

struct Bench {
    wrk: Wrk,
    places: Places,
    template: Template,
    seconds: u32,
}

/// A server that gives the right answers, and the sizes of its answers.
struct Ready {
    server: Server,
    sizes: Sizes,
}

impl Bench {
    fn open(seconds: u32) -> anyhow::Result<Self> {
        let template = Template::new();
        Ok(Self { wrk: Wrk::find(template.clone())?, places: Places::open()?, template, seconds })
    }

    fn serve(&self, contender: Contender) -> anyhow::Result<Ready> {
        let server = self.places.serve(contender)?;
        let sizes = warm_up(&server, &self.template)?;
        Ok(Ready { server, sizes })
    }

    fn series(&self, section: &mut Section) -> anyhow::Result<()> {
        let mut rates = Table::new(
            &format!("Requests a second, and the server's processor time for each, {CONNECTIONS} connections"),
            &[
                "store, retries",
                "bare",
                "guarded",
                "guarded / bare",
                "in the rounds",
                "processor, bare",
                "processor, guarded",
            ],
        );
        let mut latencies = Table::new(
            &format!("Milliseconds until the answer, {CONNECTIONS} connections"),
            &["store, retries", "bare p50", "guarded p50", "bare p99", "guarded p99", "bare p99.9", "guarded p99.9"],
        );
        let bare_server = self.serve(Contender::Bare)?;
        let others = [Contender::NearRedis, Contender::NearPostgres];
        let mut by_hand = f64::NAN;
        for store in [Contender::ByHand].into_iter().chain(Contender::STORES).chain(others) {
            for retries in Retries::RATES {
                let guarded_server = self.serve(store)?;
                let rounds = self.alternate(&bare_server, &guarded_server, retries)?;
                let mut ratios: Vec<f64> = rounds.iter().map(|[bare, guarded]| guarded.rate / bare.rate).collect();
                ratios.sort_by(f64::total_cmp);
                let ratio = median(ratios.clone());
                let [bare, guarded] = [0, 1].map(|side| medians(rounds.iter().map(|round| round[side])));

                let name = format!("{}, {}", store.name(), retries.name());
                let spread = format!("{:.3} – {:.3}", ratios[0], ratios[ratios.len() - 1]);
                let [bare_rate, guarded_rate] = [bare, guarded].map(|side| figure(side.rate, ""));
                let [bare_time, guarded_time] = [bare, guarded].map(|side| figure(side.processor, "µs"));
                let ratio_cell = format!("{ratio:.3}");
                rates.row([name.clone(), bare_rate, guarded_rate, ratio_cell, spread, bare_time, guarded_time]);
                let pairs = [(bare.p50, guarded.p50), (bare.p99, guarded.p99), (bare.p999, guarded.p999)];
                let cells = pairs.into_iter().flat_map(|(bare, guarded)| [figure(bare, ""), figure(guarded, "")]);
                latencies.row([name].into_iter().chain(cells));
                match (store, retries) {
                    (Contender::ByHand, Retries::None) => by_hand = ratio,
                    (Contender::Memory, Retries::None) => {
                        let what = "loopback: first executions in memory, of those by hand";
                        section.at_least(what, 0.97, ratio / by_hand, "×");
                    }
                    (Contender::Memory, Retries::All) => {
                        section.at_least("loopback: replays in memory, of the bare handler's", 1.0, ratio, "×");
                    }
                    (Contender::Postgres, Retries::None) => {
                        let what =
                            format!("loopback: first executions with PostgreSQL, {CONNECTIONS} connections, p99");
                        section.at_most(&what, 8.0, guarded.p99, "ms");
                    }
                    _ => {}
                }
            }
        }
        section.tables.extend([rates, latencies]);
        Ok(())
    }

    /// Alternates rounds of both sides. The bare side is the first one of each pair of figures.
    fn alternate(&self, bare: &Ready, guarded: &Ready, retries: Retries) -> anyhow::Result<Vec<[Outcome; 2]>> {
        let name = guarded.server.contender.name();
        (0..ROUNDS)
            .map(|round| {
                let run = |side| self.run(side, retries, CONNECTIONS, self.seconds);
                let outcomes = if round % 2 == 0 {
                    let bare = run(bare)?;
                    [bare, run(guarded)?]
                } else {
                    let guarded = run(guarded)?;
                    [run(bare)?, guarded]
                };
                let [bare, guarded] = outcomes.map(|outcome| outcome.rate);
                eprintln!("{name}, {} retries: bare {bare:.0}/s, guarded {guarded:.0}/s", retries.name());
                Ok(outcomes)
            })
            .collect()
    }

    fn run(&self, ready: &Ready, retries: Retries, connections: u32, seconds: u32) -> anyhow::Result<Outcome> {
        self.wrk.load(&ready.server, ready.sizes, retries, connections, seconds)
    }

    /// First executions under loads from one connection to many.
    fn curves(&self, section: &mut Section, seconds: u32) -> anyhow::Result<()> {
        let contenders = [Contender::Bare].into_iter().chain(Contender::STORES);
        let servers: Vec<Ready> = contenders.map(|contender| self.serve(contender)).collect::<Result<_, _>>()?;
        let mut curves: Vec<Curve> = servers
            .iter()
            .map(|ready| Curve { name: ready.server.contender.name().to_owned(), points: Vec::new() })
            .collect();
        let mut table = Table::new(
            &format!(
                "First executions a second, and the 99th percentile of their latency: medians of {CURVE_ROUNDS} rounds of \
                 {seconds} s, in which all take turns"
            ),
            &["connections"],
        );
        table.columns.extend(curves.iter().map(|curve| curve.name.clone()));
        for connections in LOADS {
            let mut outcomes = vec![Vec::new(); servers.len()];
            for _ in 0..CURVE_ROUNDS {
                for (ready, outcomes) in servers.iter().zip(&mut outcomes) {
                    outcomes.push(self.run(ready, Retries::None, connections, seconds)?);
                }
            }
            let points: Vec<Medians> = outcomes.into_iter().map(medians).collect();
            let cells = points.iter().map(|point| format!("{}, {}", figure(point.rate, ""), figure(point.p99, "ms")));
            table.row([connections.to_string()].into_iter().chain(cells));
            for (curve, point) in curves.iter_mut().zip(points) {
                eprintln!("{}, {connections} connections: {:.0}/s", curve.name, point.rate);
                curve.points.push((connections, point.rate, point.p99));
            }
        }
        section.tables.push(table);
        section.curves.extend(curves);
        Ok(())
    }
}

fn medians(outcomes: impl IntoIterator<Item = Outcome>) -> Medians {
    let outcomes: Vec<Outcome> = outcomes.into_iter().collect();
    let of = |figure: fn(&Outcome) -> f64| median(outcomes.iter().map(figure).collect());
    Outcome {
        rate: of(|outcome| outcome.rate),
        p50: of(|outcome| outcome.p50),
        p99: of(|outcome| outcome.p99),
        p999: of(|outcome| outcome.p999),
        processor: of(|outcome| outcome.processor),
    }
}
