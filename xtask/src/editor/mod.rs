//! Compares what an editor shows in an annotated handler and in the same handler without the attribute.

mod language_server;

use std::fs;
use std::path::Path;

use self::language_server::{LanguageServer, Position};
use crate::step::{Failure, Step};
use crate::workspace::{root, target};

const NAME: &str = "the handlers in an editor";

/// The newest release of rust-analyzer on crates.io that a stable compiler can build.
const VERSION: &str = "0.0.328";

/// Installs the language server, and compares its answers.
pub(crate) fn check() -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::of(NAME, error);
    let folder = target().join("editor");
    let installed = ["install", "ra_ap_rust-analyzer", "--locked", "--version", VERSION, "--root"];
    Step::new(
        "installing rust-analyzer",
        "cargo",
        installed.map(AsRef::as_ref).into_iter().chain([folder.as_os_str()]),
    )
    .run()?;
    let project = folder.join("project");
    let text = write_project(&project).map_err(|error| failed(&error))?;
    let mut server =
        LanguageServer::start(&folder.join("bin/rust-analyzer"), &project).map_err(|error| failed(&error))?;
    server.open(&project.join("src/lib.rs"), &text).map_err(|error| failed(&error))?;
    let different = differences(&mut server, &text).map_err(|error| failed(&error))?;
    if different.is_empty() {
        println!("An editor shows the same in both.");
        return Ok(());
    }
    Err(Failure::of(NAME, different.join("\n  ")))
}

/// Writes a separate package that depends on this runtime.
fn write_project(folder: &Path) -> std::io::Result<String> {
    fs::create_dir_all(folder.join("src"))?;
    let runtime = root().join("idempotent-runtime");
    let runtime = runtime.display();
    let manifest = format!(
        "[package]\nname = \"handlers\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\naxum = \"0.8\"\n\
         serde = {{ version = \"1\", features = [\"derive\"] }}\nidempotent-runtime = {{ path = \"{runtime}\" }}\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    let text = fs::read_to_string(root().join("ui-tests/editor/handlers.rs"))?;
    fs::write(folder.join("src/lib.rs"), &text)?;
    Ok(text)
}

fn differences(server: &mut LanguageServer, text: &str) -> std::io::Result<Vec<String>> {
    let mut different = Vec::new();
    let mut compare = |what: &str, plain: &str, annotated: &str| {
        if plain == annotated {
            println!("{what}: the same");
        } else {
            different.push(format!("{what}: {plain}\n    with the attribute: {annotated}"));
        }
    };
    let line_of = |function: &str| text.lines().position(|line| line.contains(&format!("fn {function}("))).unwrap_or(0);
    let plain = line_of("half_plain");
    for annotated in ["half_annotated", "half_annotated_with_caller"].map(line_of) {
        let mut completions =
            |line: usize| server.completions(Position { line: line + 1, column: "    let z = order.".len() });
        let (expected, found) = (completions(plain)?, completions(annotated)?);
        if !expected.iter().any(|label| label == "amount") {
            return Err(std::io::Error::other(format!("the server completes no plain handler: {expected:?}")));
        }
        compare("completions after `order.`", &expected.join(", "), &found.join(", "));
        let (expected, found) = (server.errors(plain..plain + 3)?, server.errors(annotated..annotated + 3)?);
        compare("errors of a half-typed body", &expected.join(", "), &found.join(", "));
    }
    let (plain, annotated) = (line_of("whole_plain"), line_of("whole_annotated"));
    for (line, word) in [(1, "amount ="), (1, "order."), (1, "amount;"), (2, "amount}"), (2, "format!")] {
        let column = text.lines().nth(plain + line).and_then(|text| text.find(word)).unwrap_or(0);
        let mut hover = |first: usize| server.hover(Position { line: first + line, column });
        // The value of the extractor is a variable in the annotated handler, and the argument itself in the plain one.
        let (expected, found) = (hover(plain)?, hover(annotated)?.replace("let order: Order", "order: Order"));
        compare(&format!("documentation of `{word}`"), &expected, &found);
    }
    Ok(different)
}
