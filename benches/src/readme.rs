//! The costs that the README shows, drawn from the results.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::report::{Section, Table, figure};

/// Around the part of the README that is drawn. Each of them counts as one word of the README.
const BEGIN: &str = "<!--costs-->\n";
const END: &str = "<!--/costs-->";

/// The rows of the summary that the README shows, the lost ones too.
const PATHS: [&str; 7] = [
    "first execution, 200 B",
    "replay, 200 B",
    "no key, 200 B",
    "first execution, 10 kB",
    "replay, 10 kB",
    "first execution, 1 MB",
    "replay, 1 MB",
];

const STORES: [&str; 4] = ["memory", "SQLite", "Redis", "PostgreSQL"];

/// Writes the costs into the README at this path.
///
/// # Errors
///
/// When a figure is missing, or the README has no place for them.
pub fn write(sections: &[Section], path: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("the README has no place for the costs")?;
    let (_, after) = rest.split_once(END).context("the place for the costs has no end")?;
    let text = format!("{before}{BEGIN}{}{END}{after}", costs(sections)?);
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn costs(sections: &[Section]) -> anyhow::Result<String> {
    let section =
        |title: &str| sections.iter().find(|section| section.title == title).with_context(|| title.to_owned());
    let (in_process, loopback) = (section("In process")?, section("Over loopback")?);
    let summary = in_process.summary.as_ref().context("no summary")?;
    let mut text = format!(
        "In process, with `MemoryStore`: what the guard adds to the bare handler, and its time as a part of each peer's:\n\n\
         ||added|of bare|Rustango|axum-idempotent|idempotent|by hand, fewer guarantees|\n|---|--:|--:|--:|--:|--:|--:|\n"
    );
    for path in PATHS {
        let over = cell(summary, path, 1)?;
        let (over, ratio) = over.split_once(" ns (").with_context(|| over.clone())?;
        let ratio = ratio.trim_end_matches(')').replace(' ', "");
        let peers = (2..=5).map(|column| Ok(cell(summary, path, column)?.replace(' ', "")));
        let peers: Vec<String> = peers.collect::<anyhow::Result<_>>()?;
        text += &format!("|{path}|{}|{ratio}|{}|\n", signed_micros(over)?, peers.join("|"));
    }
    text += &requests(loopback.tables.first().context("no table of loopback")?)?;
    let compile_time = section("Compile time")?;
    let build = compile_time.targets.iter().find(|target| target.what.contains("`cargo build`, clean"));
    let build = build.context("no compile time")?.measured.replace(" ×", "");
    text += &format!("A hundred annotated handlers take {build} times as long to build as plain ones.\n");
    Ok(text)
}

/// Requests per second over loopback.
fn requests(rates: &Table) -> anyhow::Result<String> {
    let rate = |store: &str, retries: &str, column| rounded(&cell(rates, &format!("{store}, {retries}"), column)?);
    let mut text = format!(
        "\nRequests per second over loopback, two cores, 64 connections:\n\n||{}|\n|---|--:|--:|--:|--:|\n",
        STORES.join("|")
    );
    for (name, retries) in [("first executions", "0 %"), ("replays", "100 %")] {
        let cells: Vec<String> = STORES.iter().map(|store| rate(store, retries, 2)).collect::<anyhow::Result<_>>()?;
        text += &format!("|{}|{}|\n", name, cells.join("|"));
    }
    let bare = rates.rows.iter().filter_map(|row| row.get(1)?.parse::<f64>().ok());
    let (least, most) = bare.fold((f64::MAX, 0.0_f64), |(least, most), rate| (least.min(rate), most.max(rate)));
    text += &format!(
        "\nThe unguarded handler serves {} to {}. ",
        rounded(&least.to_string())?,
        rounded(&most.to_string())?
    );
    Ok(text)
}

/// The cell of this row and column.
fn cell(table: &Table, row: &str, column: usize) -> anyhow::Result<String> {
    let found = table.rows.iter().find(|cells| cells[0] == row).and_then(|cells| cells.get(column));
    found.cloned().with_context(|| format!("`{}` has no `{row}`", table.caption))
}

/// `+2500` as `+2.50µs`.
fn signed_micros(nanos: &str) -> anyhow::Result<String> {
    let micros = nanos.parse::<f64>().with_context(|| nanos.to_owned())? / 1_000.0;
    let sign = if micros < 0.0 { '−' } else { '+' };
    Ok(format!("{sign}{}", figure(micros.abs(), "µs").replace(' ', "")))
}

/// `64742` as `64,700`.
fn rounded(rate: &str) -> anyhow::Result<String> {
    let hundreds = (rate.parse::<f64>()? / 100.0).round();
    ensure!(hundreds >= 1.0, "{rate} requests per second");
    let (thousands, rest) = ((hundreds / 10.0).floor(), hundreds % 10.0);
    Ok(if thousands > 0.0 { format!("{thousands},{rest}00") } else { format!("{rest}00") })
}
