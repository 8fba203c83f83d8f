//! Runs every measurement, prints one table of the targets, and writes `RESULTS.md`, the plot and the costs in the README.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail, ensure};
use idempotent_benches::machine;
use idempotent_benches::plot;
use idempotent_benches::readme;
use idempotent_benches::report::{Section, Table};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

const USAGE: &str = "\
usage: cargo xtask bench [measurement ...]
       cargo xtask bench --resume | --check | --set-budget

Without arguments: all measurements, about 20 minutes; prints one table of ratios beside their targets, and writes
benches/RESULTS.md, benches/latency.svg and the costs in README.md. --resume goes on where such a run has failed. With names: these alone, whose results are printed only.
--check holds the instructions of each path against benches/budget.toml; --set-budget writes that file.

measurements: ";

/// The measurements, in the order of the chapters in the results.
const MEASUREMENTS: [&str; 7] =
    ["in_process", "allocations", "instructions", "loopback", "engines", "growth", "compile_time"];

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {
            if measured().exists() {
                fs::remove_dir_all(measured())?;
            }
            measure_all()?;
        }
        ["--resume"] => measure_all()?,
        ["--check"] => return instructions("--check"),
        ["--set-budget"] => return instructions("--set"),
        ["--help" | "-h"] => println!("{USAGE}{}", MEASUREMENTS.join(", ")),
        names => {
            if let Some(unknown) = names.iter().find(|name| !MEASUREMENTS.contains(name)) {
                bail!("there is no measurement `{unknown}`; there are {}", MEASUREMENTS.join(", "));
            }
            for name in names {
                println!("{}", chapter(&measure(name)?));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn measure_all() -> anyhow::Result<()> {
    let sections: Vec<Section> = MEASUREMENTS.iter().map(|name| measure_once(name)).collect::<Result<_, _>>()?;
    write_results(&sections)?;
    fs::remove_dir_all(measured())?;
    println!("{}", targets(&sections).markdown());
    println!("All figures: benches/RESULTS.md");
    Ok(())
}

/// The folder with the results of measurements, so that a run that failed can continue.
fn measured() -> PathBuf {
    Path::new(FOLDER).join("target/measured")
}

/// Runs a measurement, unless an earlier run has its results.
fn measure_once(name: &str) -> anyhow::Result<Section> {
    let path = measured().join(name).with_extension("json");
    if let Ok(text) = fs::read_to_string(&path) {
        return serde_json::from_str(&text).with_context(|| format!("{} holds no section", path.display()));
    }
    let section = measure(name)?;
    fs::create_dir_all(measured())?;
    fs::write(&path, serde_json::to_string(&section)?).with_context(|| path.display().to_string())?;
    Ok(section)
}

fn measure(name: &str) -> anyhow::Result<Section> {
    eprintln!("── {name} ──");
    let output =
        program(name)?.stderr(Stdio::inherit()).output().with_context(|| format!("{name} cannot be started"))?;
    ensure!(output.status.success(), "the measurement {name} has failed: {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{name} has not printed a section"))
}

fn instructions(argument: &str) -> anyhow::Result<ExitCode> {
    let status = program("instructions")?.arg(argument).status().context("instructions cannot be started")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A command for another measuring program, which was built together with this one.
fn program(name: &str) -> anyhow::Result<Command> {
    let path = env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "{} is not built: start the measurements by `cargo xtask bench`", path.display());
    Ok(Command::new(path))
}

fn write_results(sections: &[Section]) -> anyhow::Result<()> {
    let curves: Vec<_> = sections.iter().flat_map(|section| &section.curves).cloned().collect();
    let plot = Path::new(FOLDER).join("latency.svg");
    plot::draw(&curves, &plot)?;
    let mut text = format!(
        "# What the guard costs\n\n\
         Written by `cargo xtask bench`; every comparison is made within one run, and alternates. {}\n\n",
        machine::description()
    );
    for summary in sections.iter().filter_map(|section| section.summary.as_ref()) {
        text += &format!("{}\n", summary.markdown());
    }
    text += "![99th percentile of the latency over requests per second](latency.svg)\n\n\
             First executions over loopback, for 1, 4, 16, 64 and 256 connections: how many requests a second are answered, \
             and within which time 99 % of them are.\n\n";
    text += &format!("## Targets\n\n{}\n", targets(sections).markdown());
    sections.iter().for_each(|section| text += &chapter(section));
    let path: PathBuf = Path::new(FOLDER).join("RESULTS.md");
    fs::write(&path, text.trim_end().to_owned() + "\n").with_context(|| path.display().to_string())?;
    readme::write(sections, &Path::new(FOLDER).with_file_name("README.md"))
}

fn targets(sections: &[Section]) -> Table {
    let mut table = Table::new("Each figure is one run's, beside what it should be:", &["", "target", "measured", ""]);
    for target in sections.iter().flat_map(|section| &section.targets) {
        let result = if target.met { "met" } else { "**missed**" };
        table.row([&target.what, &target.target, &target.measured, result]);
    }
    table
}

fn chapter(section: &Section) -> String {
    let paragraphs = section.text.iter().cloned().chain(section.tables.iter().map(Table::markdown));
    let body: Vec<String> = paragraphs.map(|paragraph| paragraph.trim_end().to_owned()).collect();
    format!("## {}\n\n{}\n\n", section.title, body.join("\n\n"))
}
