//! `idempotent`: shows, purges and resolves the entries of a store of idempotent-runtime, from a terminal.

mod address;
mod arguments;
mod audit;
mod failure;
mod print;
mod resolve;
mod secret;
mod store;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use idempotent_runtime::operate::{EntryReport, EntryView, State, visible};
use serde::Serialize;

use crate::arguments::{Arguments, Command, Entry};
use crate::failure::Failure;
use crate::store::Opened;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(arguments()).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {}", failure.explained());
            failure.exit_code()
        }
    }
}

/// Parses the arguments, and ends the program if they are wrong. clap's message repeats the arguments, so it gets only
/// text that a terminal can show.
fn arguments() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        let shown = std::env::args_os().map(|argument| visible(&argument.to_string_lossy()));
        Arguments::try_parse_from(shown).err().unwrap_or(error).exit()
    })
}

#[derive(Serialize)]
struct Shown {
    entry: EntryReport,
    consequence: &'static str,
}

#[derive(Serialize)]
struct Purged {
    purged: bool,
    entry: EntryReport,
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let (keys, json) = (arguments.keys(), arguments.json);
    let store = Opened::open(&arguments.store).await?;
    match arguments.command {
        Command::List { filter, state } => {
            let scan = store.scan(filter.scope, filter.limit).await?;
            let states = state.map_or_else(|| State::ALL.to_vec(), |state| vec![state]);
            print::entries(&scan, &states, filter.limit, keys, json);
        }
        Command::Stuck { filter, check } => {
            let scan = store.scan_of_claims(filter.scope, filter.limit).await?;
            let stuck: Vec<State> = State::ALL.into_iter().filter(|state| state.is_stuck()).collect();
            print::entries(&scan, &stuck, filter.limit, keys, json);
            if check && stuck.iter().any(|&state| scan.counts().in_state(state) > 0) {
                return Ok(ExitCode::from(1));
            }
        }
        Command::Show { target } => {
            let view = store.look_up(&target.entry()?).await?;
            if json {
                print::json(&Shown { entry: view.report(keys), consequence: view.state().consequence() });
            } else {
                print::out(&print::entry(&view, keys));
            }
        }
        Command::Purge { target, yes } => {
            let entry = target.entry()?;
            let confirm = |view: &EntryView| {
                if yes { Ok(()) } else { ask(&print::entry(view, keys), view.state()) }
            };
            let view = purge(&store, &entry, confirm).await?;
            if json {
                print::json(&Purged { purged: true, entry: view.report(keys) });
            } else {
                print::out("purged: a retry with this key runs the handler again\n");
            }
        }
        Command::Resolve(resolve) => resolve::run(&store, *resolve, keys, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn purge(
    store: &Opened,
    entry: &Entry,
    confirm: impl FnOnce(&EntryView) -> Result<(), Failure>,
) -> Result<EntryView, Failure> {
    let view = store.look_up(entry).await?;
    // An entry that was found by its key, or by the key's digest, has a key.
    let key = view.key().ok_or(Failure::NothingThere)?;
    confirm(&view)?;
    // A person takes a while to answer, and the entry may have changed meanwhile.
    let now = store.get(key).await?.ok_or(Failure::NothingThere)?;
    if now.confirmation() != view.confirmation() {
        return Err(Failure::Changed);
    }
    if store.purge(key).await? { Ok(view) } else { Err(Failure::NothingThere) }
}

/// Asks for a confirmation on the terminal. Fails if there is none.
fn ask(entry: &str, state: State) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::NoTerminal { done: "purged" });
    }
    eprint!("{entry}\nCareful: {}.\nPurge it? Only `yes` does: ", state.consequence());
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" { Ok(()) } else { Err(Failure::NotConfirmed { done: "purged" }) }
}
