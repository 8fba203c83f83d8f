//! The commands of this repository; `cargo xtask` lists them.

mod all_tests;
mod bench;
mod chaos;
mod concurrency;
mod docs_rs;
mod editor;
mod engines;
mod entries;
mod features;
mod fuzz;
mod nightly;
mod package;
mod platforms;
mod prerequisites;
mod public_api;
mod release;
mod rust_version;
mod step;
mod structure;
mod supply_chain;
mod workspace;

use std::process::ExitCode;
use std::time::Instant;
use std::{env, iter};

use self::step::{Failure, Step};
use self::workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask <command>

commands:
  test    everything that must be green: formatting, clippy, all tests of all features, ui-tests, examples, docs;
          installs what it needs on Debian
  fuzz [--seconds N] [target]
          hostile input for every parser and decoder, or for one, a minute each; installs cargo-fuzz, needs a nightly
          compiler
  chaos [--seed N] [--minutes N] [--store sqlite|redis|postgres] [--only FAMILY | --without GUARD]
          server processes that are killed, stopped and cut off, for 5 minutes, and handlers that block or lose their
          transaction; a checker prints the history of each key whose handler broke its word. --only plays the faults of
          one kind alone, --without takes a guard out, which must be noticed; --help names the kinds and the guards
  chaos outages [--rounds N] [--store sqlite|redis|postgres] [--only OUTAGE] [--seed N]
          each store is killed, paused, demoted, cut off without a word and restarted under load, 200 times in all, in some
          10 minutes each; counts the executions of each key, and the seconds until each process serves again
  chaos --soak [--minutes N]
          a thousand connections for N minutes, 10 by default, after which nothing may be left of them
  bench [measurement ...]
          what the guard costs beside the bare handler, its peers and the limits of the engines: prints one table of
          ratios and writes benches/RESULTS.md, in about 20 minutes; --help names the measurements; installs what it needs
  bench --check
          the instructions of each path against benches/budget.toml; --set-budget writes that file
  picture the inspector's page as the browser shows it, into docs/operations/inspector.png, and the demo as a terminal
          shows it, into docs/demo.svg
  entries [--entries N] [--store memory|sqlite|postgres|redis]
          each store, or one of them, with N records, 10 million by default, and claims of each kind: how long its claims and
          the first page of the inspector take; ten million need up to 10 GB of memory
  engines [NAME]
          the tests of each store on every version of its server that npm, PyPI, Debian 12 and Debian 13 have, or on those
          whose name contains NAME, such as postgres-18; in some 20 minutes
  editor  what an editor shows in an annotated handler: completions, documentation and errors are those of the same handler
          without the attribute; installs rust-analyzer from crates.io, in some 10 minutes
  concurrency  the concurrency tests alone, or those whose name contains the word after it
  public-api
          writes what users can name into docs/public-api; `test` compares
  release what must hold before a version is published, in some 20 minutes, and publishes nothing: the changelog, the
          rust-version and the public interface, as in `test`, and these three:
  docs-rs the documentation as docs.rs makes it, into target/docs-rs; needs a nightly compiler
  features
          every two features of each crate together, and what `platforms` does; installs cargo-hack
  platforms
          all features for Windows and macOS, and the default ones by the compiler that each crate declares; installs
          MinGW, and by rustup what those need
  package the archives that would be published: what is in them, and their tests in a folder outside of the repository
";

fn main() -> ExitCode {
    if let Some(outcome) = public_api::instead_of_rustdoc() {
        return outcome;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["test"] => test(),
        ["fuzz", options @ ..] => return fuzz::fuzz(options),
        ["chaos", options @ ..] if let Some(chaos) = chaos::planned(options) => chaos::run(&chaos),
        ["bench", options @ ..] => bench::run(options),
        ["picture"] => picture(),
        ["entries", options @ ..] if let Some(entries) = entries::planned(options) => entries::run(&entries),
        ["engines"] => engines::run(""),
        ["engines", name] => engines::run(name),
        ["editor"] => editor::check(),
        ["concurrency"] => concurrency::run("").map(drop),
        ["concurrency", name] => concurrency::run(name).map(drop),
        ["public-api"] => on_the_workspace(public_api::write),
        ["release"] => on_the_workspace(release::run),
        ["docs-rs"] => on_the_workspace(docs_rs::check),
        ["features"] => on_the_workspace(features::check),
        ["platforms"] => on_the_workspace(platforms::check),
        ["package"] => on_the_workspace(package::run),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [] => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
        unknown => {
            eprint!("unknown command `{}`\n\n{USAGE}", unknown.join(" "));
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\n{failure}");
            ExitCode::FAILURE
        }
    }
}

fn on_the_workspace(check: fn(&Workspace) -> Result<(), Failure>) -> Result<(), Failure> {
    check(&Workspace::read()?)
}

fn test() -> Result<(), Failure> {
    let begun = Instant::now();
    prerequisites::install()?;
    let workspace = Workspace::read()?;
    release::changelog_has_a_chapter(&workspace)?;
    rust_version::check(&workspace)?;
    package::check(&workspace)?;
    structure::check()?;
    cargo("formatting", "fmt --all --check").run()?;
    cargo("clippy", "clippy --workspace --all-targets --all-features --quiet -- -D warnings").run()?;
    for feature in iter::once("").chain(workspace.package("idempotent-runtime")?.features()) {
        let features = format!("--no-default-features --features={feature}");
        let arguments = format!("clippy -p idempotent-runtime --lib {features} --quiet -- -D warnings");
        cargo(&format!("the runtime with the features [{feature}]"), &arguments).run()?;
    }
    cargo("documentation", "doc --workspace --no-deps --all-features --quiet")
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    public_api::check(&workspace)?;
    // Run the runtime's tests in a separate build: in a build with other packages, cargo would enable their features
    // too.
    let own = cargo("the runtime's own tests, default features", "test -p idempotent-runtime").run_tests()?;
    let all = all_tests::run()?;
    let passed = own.passed + all.passed + concurrency::run("")?;
    supply_chain::check()?;
    println!("\nThe slowest programs:");
    for (program, seconds) in all.slowest(5) {
        println!("  {seconds:>5.0} s  {program}");
    }
    let seconds = begun.elapsed().as_secs();
    println!("\nEverything is green: {passed} tests ran in {} min {} s.", seconds / 60, seconds % 60);
    Ok(())
}

fn picture() -> Result<(), Failure> {
    prerequisites::install()?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations");
    cargo("the inspector in a browser", "test -p idempotent-tests --test operate -- inspector::browser")
        .env("INSPECTOR_PICTURE", folder)
        .run()?;
    cargo("the demo on a terminal", "test -p charges --test demo -- picture").env("DEMO_PICTURE", "yes").run()
}

fn cargo(name: &str, arguments: &str) -> Step {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Step::new(name, cargo, arguments.split_whitespace())
}
