//! Compares each store with its database: first executions, replays and `Tx`, beside bare commands in the same run.
//!
//! The first argument is how many seconds a contender runs in each round. The others name what is measured: `redis`,
//! `postgres`, `tx` or `sqlite`.

mod transactions;

use std::time::Duration;

use idempotent_benches::engines::contest::Effort;
use idempotent_benches::engines::{postgres, redis, sqlite};
use idempotent_benches::report::Section;

const ROUNDS: usize = 9;

const ROUND: f64 = 0.5;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(ROUND, |seconds| seconds.parse().expect("the seconds of a round"));
    let named: Vec<String> = arguments.collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    let effort = Effort { rounds: ROUNDS, round: Duration::from_secs_f64(seconds) };

    let mut section = Section::new("Against the engines");
    section.text.push(format!(
        "Each store is compared with the fewest commands that its database needs for the same work. The figures are medians of \
         {ROUNDS} rounds of {seconds} s a side; the sides alternate, and a ratio is the median of the rounds' ratios. A first \
         execution is a claim of a fresh key and its completion with a record: status 201, two headers and 300 bytes of JSON. \
         A replay is a claim of a completed key."
    ));
    if is_wanted("redis") {
        redis::measure(&mut section, effort).await;
    }
    if is_wanted("postgres") || is_wanted("tx") {
        let server = postgres::server().await;
        if is_wanted("postgres") {
            postgres::measure(&mut section, effort, &server).await;
        }
        if is_wanted("tx") {
            transactions::measure(&mut section, effort, &server).await;
        }
    }
    if is_wanted("sqlite") {
        sqlite::measure(&mut section, effort).await;
    }
    section.print();
}
