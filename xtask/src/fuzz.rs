//! Runs the targets of the fuzzer for a long time, each with a growing corpus.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::nightly;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How long each target runs by default.
const SECONDS: u64 = 60;

/// `[--seconds N] [target]`
pub(crate) fn fuzz(arguments: &[&str]) -> ExitCode {
    match Plan::parse(arguments).and_then(|plan| plan.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error}");
            ExitCode::FAILURE
        }
    }
}

struct Plan {
    seconds: u64,
    targets: Vec<String>,
}

/// The result of one target.
struct Outcome {
    executions: u64,
    edges: u64,
    crash: Option<String>,
}

impl Plan {
    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let (mut seconds, mut targets, all) = (SECONDS, Vec::new(), targets()?);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if *argument == "--seconds" {
                let number = arguments.next().and_then(|number| number.parse().ok()).filter(|&number| number > 0);
                seconds = number.ok_or("`--seconds` needs a number of at least 1; write `--seconds 60`")?;
            } else if all.iter().any(|target| target == argument) {
                targets.push((*argument).to_owned());
            } else {
                return Err(format!("there is no target `{argument}`; the targets are {}", all.join(", ")));
            }
        }
        Ok(Self { seconds, targets: if targets.is_empty() { all } else { targets } })
    }

    fn run(&self) -> Result<(), String> {
        install()?;
        println!("── building the targets ──");
        let built = cargo(&["build"]).status().map_err(|error| format!("cargo could not be started: {error}"))?;
        if !built.success() {
            return Err("the targets do not build".to_owned());
        }
        println!("\n{:<24} {:>12} {:>8}   {} s each", "target", "executions", "edges", self.seconds);
        let mut crashes = Vec::new();
        for target in &self.targets {
            let Outcome { executions, edges, crash } = run_target(target, self.seconds)?;
            let result = crash.as_deref().unwrap_or("holds");
            println!("{target:<24} {executions:>12} {edges:>8}   {result}");
            crashes.extend(crash.map(|path| format!("{target}: {path}")));
        }
        if crashes.is_empty() {
            return Ok(());
        }
        Err(format!(
            "FAILED:\n  {}\nrun it again with `cd fuzz && cargo +nightly fuzz run TARGET PATH`; when it is fixed, keep the \
             input among fuzz/seeds/TARGET",
            crashes.join("\n  ")
        ))
    }
}

/// The names of the targets' programs.
fn targets() -> Result<Vec<String>, String> {
    let folder = Path::new(ROOT).join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = files.filter_map(|file| Some(file.ok()?.path()));
    let mut names: Vec<_> = paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Installs cargo-fuzz. The nightly compiler is left to the developer to install.
fn install() -> Result<(), String> {
    if !nightly::is_there() {
        return Err("fuzzing needs a nightly compiler for its sanitizer; run `rustup toolchain install nightly \
             --profile minimal`, and then this again"
            .to_owned());
    }
    if is_installed() {
        return Ok(());
    }
    println!("── installing cargo-fuzz ──");
    let installed = Command::new("cargo").args(["install", "cargo-fuzz", "--locked"]).status();
    if installed.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err("cargo-fuzz cannot be installed; run `cargo install cargo-fuzz --locked` to see why".to_owned())
}

fn is_installed() -> bool {
    let mut ask = cargo(&["--version"]);
    ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A `cargo fuzz …` command with the nightly compiler.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz"]).args(arguments).current_dir(Path::new(ROOT).join("fuzz"));
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}

fn run_target(target: &str, seconds: u64) -> Result<Outcome, String> {
    let corpus: PathBuf = Path::new(ROOT).join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus).map_err(|error| format!("{}: {error}", corpus.display()))?;
    // libFuzzer writes new inputs to the first folder, and only reads the seeds.
    let (grown, seeds) = (format!("corpus/{target}"), format!("seeds/{target}"));
    let limit = format!("-max_total_time={seconds}");
    let mut command = cargo(&["run", target, &grown, &seeds, "--", &limit, "-timeout=10", "-print_final_stats=1"]);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("cargo could not be started: {error}"))?;
    let mut outcome = Outcome { executions: 0, edges: 0, crash: None };
    let mut last = Vec::new();
    let lines = child.stderr.take().map(|errors| BufReader::new(errors).lines()).into_iter().flatten();
    for line in lines.map_while(Result::ok) {
        outcome.read(&line);
        last.push(line);
        last.drain(..last.len().saturating_sub(40));
    }
    let status = child.wait().map_err(|error| format!("{target}: {error}"))?;
    if !status.success() {
        eprintln!("{}", last.join("\n"));
        outcome.crash.get_or_insert_with(|| format!("ended with {status}"));
    }
    Ok(outcome)
}

impl Outcome {
    /// Reads a line of libFuzzer's output: `#8192 pulse cov: 512 ft: …`, `stat::number_of_executed_units: 8192`, or,
    /// after a crash, `Test unit written to artifacts/…`.
    fn read(&mut self, line: &str) {
        if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = number.trim().parse().unwrap_or_default();
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.crash = Some(path.trim().to_owned());
        } else if let Some((_, following)) = line.split_once(" cov: ") {
            self.edges = following.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(self.edges);
        }
    }
}
