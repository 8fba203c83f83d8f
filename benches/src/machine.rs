//! Describes the machine on which the figures were measured.

use std::fs;
use std::process::Command;

/// A paragraph about the machine, and the versions of the programs.
pub fn description() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = [
        field("/proc/cpuinfo", "model name").map(|model| format!("{cores} cores of {model}")),
        field("/proc/meminfo", "MemTotal").map(|memory| format!("{memory} of memory")),
        first_line("uname", &["-sr"]),
        first_line("rustc", &["--version"]),
        first_line("valgrind", &["--version"]),
        first_line("wrk", &["--version"]).and_then(|line| line.split(" Copyright").next().map(str::to_owned)),
        first_line("redis-server", &["--version"]),
        first_line("psql", &["--version"]),
        first_line("date", &["--utc", "+%Y-%m-%d"]),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    format!("The machine: {}.", known.join("; "))
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The first line that the program prints, to standard output or else to standard error. The exit status does not
/// matter: wrk exits with an error after it has printed its version.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
}
