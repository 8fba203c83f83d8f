//! What a hundred annotated handlers cost the compiler, beside the same hundred without the attribute.

mod application;
mod project;

use std::path::Path;

use self::application::{HANDLERS, Kind};
use self::project::{Project, Took};
use crate::report::{Section, Table, figure, median};

/// What a developer waits for, in the order of one round.
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
/// When cargo fails, whose own words are part of the error.
pub fn measure(rounds: usize, runtime: &Path) -> anyhow::Result<Section> {
    let folder = tempfile::tempdir()?;
    let mut plain = Project::write(Kind::Plain, folder.path(), runtime)?;
    let mut annotated = Project::write(Kind::Annotated, folder.path(), runtime)?;
    for project in [&plain, &annotated] {
        for command in [&["check"][..], &["build"], &["build", "--release"]] {
            eprintln!("{} with its dependencies", command.join(" "));
            project.run(command)?;
        }
    }
    let sizes = (plain.program_bytes()?, annotated.program_bytes()?);

    let (mut of_plain, mut of_annotated) = (Rounds::new(), Rounds::new());
    for round in 0..rounds {
        // Each of them goes first as often as the other.
        if round % 2 == 0 {
            of_plain.push(steps(&mut plain)?);
            of_annotated.push(steps(&mut annotated)?);
        } else {
            of_annotated.push(steps(&mut annotated)?);
            of_plain.push(steps(&mut plain)?);
        }
        let walls = |times: &Rounds| times[round].map(|took| format!("{:.2}", took.wall)).join(" ");
        eprintln!("round {round}: plain {} s, annotated {} s", walls(&of_plain), walls(&of_annotated));
    }
    Ok(section(&of_plain, &of_annotated, sizes))
}

fn steps(project: &mut Project) -> anyhow::Result<[Took; STEPS.len()]> {
    project.clean()?;
    let (check, build) = (project.run(&["check"])?, project.run(&["build"])?);
    project.edit()?;
    Ok([check, build, project.run(&["check"])?, project.run(&["build"])?])
}

fn section(plain: &Rounds, annotated: &Rounds, sizes: (u64, u64)) -> Section {
    let mut section = Section::new("Compile time");
    let mut table = Table::new(
        &format!(
            "A crate of {HANDLERS} handlers in the dev profile: seconds on the wall, and of processors; medians of {} \
             alternating rounds",
            plain.len()
        ),
        &["", "plain", "annotated", "ratio", "plain, processor", "annotated, processor", "ratio", "ms a handler"],
    );
    for (index, step) in STEPS.iter().enumerate() {
        let column = |rounds: &Rounds, pick: fn(&Took) -> f64| rounds.iter().map(|round| pick(&round[index])).collect();
        let compare = |pick: fn(&Took) -> f64| {
            let (plain, annotated): (Vec<f64>, Vec<f64>) = (column(plain, pick), column(annotated, pick));
            let ratio = median(plain.iter().zip(&annotated).map(|(plain, annotated)| annotated / plain).collect());
            (median(plain), median(annotated), ratio)
        };
        let wall = compare(|took| took.wall);
        let processor = compare(|took| took.processor);
        let each = (processor.1 - processor.0) * 1_000.0 / HANDLERS as f64;
        let cells = [wall.0, wall.1, wall.2, processor.0, processor.1, processor.2, each];
        table.row(std::iter::once((*step).to_owned()).chain(cells.map(|cell| figure(cell, ""))));
        section.at_most(&format!("{HANDLERS} annotated handlers, {step}, over plain ones"), 1.25, wall.2, "×");
    }
    section.tables.push(table);
    let mebibytes = |bytes: u64| figure(bytes as f64 / 1_048_576.0, "MiB");
    let mut table = Table::new("The stripped program in the release profile", &["", "plain", "annotated", "a handler"]);
    let each = (sizes.1 as f64 - sizes.0 as f64) / 1_024.0 / HANDLERS as f64;
    table.row(["size".to_owned(), mebibytes(sizes.0), mebibytes(sizes.1), figure(each, "KiB")]);
    section.tables.push(table);
    section.text.push(format!(
        "Two crates of the same {HANDLERS} handlers in ten files, with a router and a state, each with an input and an \
         output type of its own that derive serde's traits; the only differences are the attribute, the dependency on \
         this library and its installation. The dependencies are built before; a clean build is one of the crate alone, \
         with its linking. The size a handler contains its share of the library itself."
    ));
    section
}
