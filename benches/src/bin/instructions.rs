//! Instructions of a request, counted by callgrind. The counts are the same in each run, so they reveal regressions.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use idempotent_benches::report::{Section, Table};
use serde::{Deserialize, Serialize};

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/budget.toml");

/// The numbers of requests in two runs. The difference between the runs excludes the instructions for start and end.
const REQUESTS: [u64; 2] = [500, 1_500];

/// The thread that sends the requests, as `one_path` names it.
const ONE_THREAD: &str = "one-thread";
const BLOCK_ON: &str = "block-on";

/// How much two runs of the same sources may differ, as a part of the bare handler's instructions: hashes have random
/// seeds, so tables grow at different times.
const TOLERANCE: f64 = 0.03;

/// Instructions that each path adds to the bare handler's.
#[derive(Serialize, Deserialize)]
struct Budget {
    first: i64,
    replay: i64,
    no_key: i64,
    /// A first execution that is called in `block_on` of a runtime with one worker.
    first_in_block_on: i64,
    /// A replay that is called there.
    replay_in_block_on: i64,
}

impl Budget {
    fn paths(&self) -> [(&'static str, i64); 5] {
        [
            ("first", self.first),
            ("replay", self.replay),
            ("no-key", self.no_key),
            ("first in block_on", self.first_in_block_on),
            ("replay in block_on", self.replay_in_block_on),
        ]
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let argument = std::env::args().nth(1);
    // Each path is compared with the bare handler for the same request on the same thread.
    let bare = |scenario, caller| instructions("bare", scenario, caller);
    let (bare_with_key, bare_in_block_on) = (bare("first", ONE_THREAD)?, bare("first", BLOCK_ON)?);
    let over = |scenario, caller, bare: u64| {
        anyhow::Ok(instructions("ours", scenario, caller)?.cast_signed() - bare.cast_signed())
    };
    let measured = Budget {
        first: over("first", ONE_THREAD, bare_with_key)?,
        replay: over("replay", ONE_THREAD, bare_with_key)?,
        no_key: over("no-key", ONE_THREAD, bare("no-key", ONE_THREAD)?)?,
        first_in_block_on: over("first", BLOCK_ON, bare_in_block_on)?,
        replay_in_block_on: over("replay", BLOCK_ON, bare_in_block_on)?,
    };
    match argument.as_deref() {
        None => section(bare_with_key, &measured).print(),
        Some("--set") => {
            let text = toml::to_string(&measured)?;
            let head = "# Instructions that the guard adds to a request of the bare handler, by `cargo xtask bench --check`.\n";
            fs::write(BUDGET, format!("{head}{text}")).with_context(|| BUDGET.to_owned())?;
        }
        Some("--check") => return check(bare_with_key, &measured),
        Some(other) => anyhow::bail!("`{other}` is neither `--check` nor `--set`"),
    }
    Ok(ExitCode::SUCCESS)
}

fn section(bare: u64, measured: &Budget) -> Section {
    let mut section = Section::new("Instructions");
    section.text.push(format!(
        "Counted by `valgrind --tool=callgrind`: the difference between runs of {} and {} requests with bodies of 200 bytes, \
         which is what the requests alone take. valgrind's processor has no instructions for SHA-256, so that the \
         fingerprint counts for more here than on a real one. `cargo xtask bench --check` holds these figures against \
         `budget.toml`.",
        REQUESTS[0], REQUESTS[1]
    ));
    let mut table = Table::new(
        &format!("Instructions that the guard adds to a request; the bare handler takes {bare} for one with a key"),
        &["", "over bare"],
    );
    for (path, over) in measured.paths() {
        table.row([path.to_owned(), format!("{over:+}")]);
    }
    section.tables.push(table);
    section
}

fn check(bare: u64, measured: &Budget) -> anyhow::Result<ExitCode> {
    let text = fs::read_to_string(BUDGET).with_context(|| format!("{BUDGET}: `--set` makes it"))?;
    let budget: Budget = toml::from_str(&text).with_context(|| BUDGET.to_owned())?;
    let slack = (bare as f64 * TOLERANCE) as i64;
    let mut is_kept = true;
    println!("{:<20} {:>10} {:>10}   instructions over the {bare} of the bare handler", "", "measured", "budget");
    for ((path, measured), (_, budget)) in measured.paths().into_iter().zip(budget.paths()) {
        let result = match measured - budget {
            more if more > slack => {
                is_kept = false;
                "TOO MANY"
            }
            less if less < -slack => "fewer: keep it so with `cargo xtask bench --set-budget`",
            _ => "kept",
        };
        println!("{path:<20} {measured:>+10} {budget:>+10}   {result}");
    }
    Ok(if is_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The instructions of one request.
fn instructions(contender: &str, scenario: &str, caller: &str) -> anyhow::Result<u64> {
    let [few, many] = REQUESTS.map(|requests| collected(contender, scenario, requests, caller));
    let (few, many) = (few?, many?);
    ensure!(many > few, "{contender} {scenario} {caller}: {many} instructions for more requests than {few} were for");
    Ok((many - few) / (REQUESTS[1] - REQUESTS[0]))
}

fn collected(contender: &str, scenario: &str, requests: u64, caller: &str) -> anyhow::Result<u64> {
    let program = std::env::current_exe()?.with_file_name("one_path");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    valgrind.args([contender, scenario, &requests.to_string(), caller]);
    let output = valgrind.output().context("valgrind cannot be started; install it with `apt-get install valgrind`")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{contender} {scenario}: {text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.with_context(|| format!("callgrind tells no `Collected : …` in {text}"))
}
