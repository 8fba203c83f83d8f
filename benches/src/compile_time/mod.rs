//! Measures the compile time of a hundred annotated handlers, beside the same handlers without the attribute.

mod application;
mod project;

use std::path::Path;

use self::application::{HANDLERS, Kind, package};
use self::project::{Project, Took};
use crate::report::{Section, Table, figure, median};

/// The commands for which a developer waits, in the order of one round.
const STEPS: [&str; 4] = [
    "`cargo check`, clean",
    "`cargo build`, clean",
    "`cargo check` after a change in one handler",
    "`cargo build` after a change in one handler",
];

/// The time of each step, in each round.
type Rounds = Vec<[Took; STEPS.len()]>;

/// Compares both crates, with the runtime in the folder `runtime`.
///
/// # Errors
///
/// When cargo fails. The error contains cargo's messages.
pub fn measure(rounds: usize, runtime: &Path) -> anyhow::Result<Section> {
    let folder = tempfile::tempdir()?;
    let (mut projects, mut sizes) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        let project = Project::write(kind, folder.path(), runtime)?;
        for command in [&["check"][..], &["build"], &["build", "--release"]] {
            eprintln!("{}: {} with its dependencies", package(kind), command.join(" "));
            project.run(command)?;
        }
        // Measured first, because the rounds clean the built program away.
        sizes.push(project.program_bytes()?);
        projects.push((project, Rounds::new()));
    }
    for round in 0..rounds {
        // Each project comes first equally often.
        for turn in 0..projects.len() {
            let turn = (round + turn) % projects.len();
            let (project, times) = &mut projects[turn];
            times.push(steps(project)?);
            let walls = times[round].map(|took| format!("{:.2}", took.wall)).join(" ");
            eprintln!("round {round}: {} {walls} s", package(Kind::ALL[turn]));
        }
    }
    let rounds: Vec<Rounds> = projects.into_iter().map(|(_, rounds)| rounds).collect();
    Ok(section(&rounds, &sizes))
}

fn steps(project: &mut Project) -> anyhow::Result<[Took; STEPS.len()]> {
    project.clean()?;
    let (check, build) = (project.run(&["check"])?, project.run(&["build"])?);
    project.edit()?;
    Ok([check, build, project.run(&["check"])?, project.run(&["build"])?])
}

/// The results of each kind, in the order of [`Kind::ALL`].
fn section(rounds: &[Rounds], sizes: &[u64]) -> Section {
    let mut section = Section::new("Compile time");
    let [plain, annotated] = rounds else { unreachable!("there are as many as kinds") };
    let mut table = Table::new(
        &format!(
            "A crate of {HANDLERS} handlers in the dev profile: seconds on the wall, and how often that of the plain one; \
             medians of {} alternating rounds",
            plain.len()
        ),
        &["", "plain", "annotated", "ratio", "of processors", "ms a handler"],
    );
    for (index, step) in STEPS.iter().enumerate() {
        let column = |rounds: &Rounds, pick: fn(&Took) -> f64| -> Vec<f64> {
            rounds.iter().map(|round| pick(&round[index])).collect()
        };
        let over_plain = |pick: fn(&Took) -> f64| {
            let (plain, annotated) = (column(plain, pick), column(annotated, pick));
            median(plain.iter().zip(&annotated).map(|(plain, annotated)| annotated / plain).collect())
        };
        let wall = |rounds: &Rounds| median(column(rounds, |took| took.wall));
        let processor = |rounds: &Rounds| median(column(rounds, |took| took.processor));
        let each = (processor(annotated) - processor(plain)) * 1_000.0 / HANDLERS as f64;
        let ratio = over_plain(|took| took.wall);
        let cells = [
            figure(wall(plain), ""),
            figure(wall(annotated), ""),
            figure(ratio, "×"),
            figure(over_plain(|took| took.processor), "×"),
            figure(each, ""),
        ];
        table.row(std::iter::once((*step).to_owned()).chain(cells));
        section.at_most(&format!("{HANDLERS} annotated handlers, {step}, over plain ones"), 1.25, ratio, "×");
    }
    section.tables.push(table);
    let mut table = Table::new("The stripped program in the release profile", &["", "plain", "annotated"]);
    table.row(
        std::iter::once("size".to_owned()).chain(sizes.iter().map(|&bytes| figure(bytes as f64 / 1_048_576.0, "MiB"))),
    );
    let a_handler = |bytes: u64| figure((bytes as f64 - sizes[0] as f64) / 1_024.0 / HANDLERS as f64, "KiB");
    table.row(std::iter::once("a handler more".to_owned()).chain(sizes.iter().map(|&bytes| a_handler(bytes))));
    section.tables.push(table);
    section.text.push(format!(
        "Two crates have the same {HANDLERS} handlers in ten files, with a router and a state. Each handler has its own input \
         and output type, which derive serde's traits. The crates differ only by the attribute, the dependency on this library \
         and the installation of a registry. The dependencies are built before. A clean build is that of the crate alone, with \
         linking. The size of a handler includes its share of the library."
    ));
    section
}
