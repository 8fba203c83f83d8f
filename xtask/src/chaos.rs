//! The long runs: faults of every kind, and a soak.

use std::num::NonZero;

use crate::step::Failure;
use crate::{cargo, prerequisites};

/// What is asked for after `cargo xtask chaos`.
pub(crate) enum Chaos<'a> {
    /// The options of the fault suite's own program, which knows them best.
    Faults(&'a [&'a str]),
    /// The same of its outages.
    Outages(&'a [&'a str]),
    Soak {
        minutes: u64,
    },
}

/// `None` when the arguments ask for nothing that there is.
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
