//! Starts the long runs: faults of every kind, and a soak test.

use std::num::NonZero;

use crate::step::Failure;
use crate::{cargo, prerequisites};

/// The run that the arguments after `cargo xtask chaos` name.
pub(crate) enum Chaos<'a> {
    /// The fault suite, with the options of its own program.
    Faults(&'a [&'a str]),
    /// The outages, with the options of their own program.
    Outages(&'a [&'a str]),
    Soak {
        minutes: u64,
    },
}

/// `None` if the arguments name no run.
pub(crate) fn planned<'a>(arguments: &'a [&'a str]) -> Option<Chaos<'a>> {
    match arguments {
        ["--soak"] => Some(Chaos::Soak { minutes: 10 }),
        ["--soak", "--minutes", minutes] => {
            minutes.parse::<NonZero<u64>>().ok().map(|minutes| Chaos::Soak { minutes: minutes.get() })
        }
        ["--soak", ..] => None,
        ["outages", options @ ..] => Some(Chaos::Outages(options)),
        options => Some(Chaos::Faults(options)),
    }
}

pub(crate) fn run(chaos: &Chaos<'_>) -> Result<(), Failure> {
    prerequisites::install()?;
    match chaos {
        Chaos::Faults(options) => {
            let arguments = format!("run --quiet -p chaos -- run {}", options.join(" "));
            cargo("faults, clients that repeat everything, and a checker", &arguments).run()
        }
        Chaos::Outages(options) => {
            let arguments = format!("run --quiet -p chaos -- outages {}", options.join(" "));
            cargo("outages of the store under load", &arguments).run()
        }
        Chaos::Soak { minutes } => cargo(
            &format!("a soak of {minutes} minutes"),
            "test -p idempotent-tests --test operate -- soak --nocapture",
        )
        .env("IDEMPOTENT_SOAK_SECONDS", minutes.saturating_mul(60).to_string())
        .run(),
    }
}
