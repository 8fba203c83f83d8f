//! What cargo knows about the packages of this repository and their dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cargo;
use crate::step::Failure;

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The packages, with all features and on every platform.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) rust_version: Option<String>,
    features: BTreeMap<String, Vec<String>>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    source: Option<String>,
    publish: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

impl Workspace {
    /// Reads the metadata from cargo.
    pub(crate) fn read() -> Result<Self, Failure> {
        let name = "the packages and their dependencies";
        let answer = cargo(name, "metadata --format-version 1 --all-features").within(root()).answer()?;
        serde_json::from_slice(&answer).map_err(|error| Failure::of(name, format!("cargo metadata: {error}")))
    }

    /// The packages that may be published, each one after its dependencies.
    pub(crate) fn published(&self) -> Vec<&Package> {
        let ours = |package: &&Package| package.is_ours() && package.publish.is_none();
        let mut published: Vec<_> = self.packages.iter().filter(ours).collect();
        published.sort_by_key(|package| self.dependencies(package).into_iter().filter(ours).count());
        published
    }

    pub(crate) fn package(&self, name: &str) -> Result<&Package, Failure> {
        let package = self.packages.iter().find(|package| package.name == name && package.is_ours());
        package.ok_or_else(|| Failure::of("the packages and their dependencies", format!("there is no {name} here")))
    }

    /// Every package that is compiled into this one, or that runs while it is compiled.
    pub(crate) fn dependencies(&self, package: &Package) -> Vec<&Package> {
        let (mut found, mut open) = (BTreeSet::new(), vec![package.id.as_str()]);
        while let Some(id) = open.pop() {
            let nodes = self.resolve.nodes.iter().filter(|node| node.id == id);
            for dependency in nodes.flat_map(|node| &node.deps).filter(|dependency| dependency.is_compiled_in()) {
                if found.insert(dependency.pkg.as_str()) {
                    open.push(&dependency.pkg);
                }
            }
        }
        self.packages.iter().filter(|package| found.contains(package.id.as_str())).collect()
    }

    /// The same with only the default features of this package.
    pub(crate) fn default_dependencies(&self, package: &Package) -> Result<Vec<&Package>, Failure> {
        let arguments = format!("tree -p {} -e normal,build --target all --prefix none --format {{p}}", package.name);
        let answer = cargo("the dependencies of the default features", &arguments).within(root()).answer()?;
        let tree = String::from_utf8_lossy(&answer);
        // A line is `name v1.2.3`, followed by the path for packages of this repository.
        let found: BTreeSet<_> = tree
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?, words.next()?.strip_prefix('v')?))
            })
            .collect();
        let is_found = |other: &&Package| found.contains(&(other.name.as_str(), other.version.as_str()));
        Ok(self.packages.iter().filter(is_found).collect())
    }
}

impl Dependency {
    fn is_compiled_in(&self) -> bool {
        self.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
    }
}

impl Package {
    pub(crate) fn is_ours(&self) -> bool {
        self.source.is_none()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }

    /// The name of its archive and of the folder in the archive.
    pub(crate) fn label(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Returns the features that a user chooses from.
    pub(crate) fn features(&self) -> impl Iterator<Item = &str> {
        self.features.keys().map(String::as_str).filter(|feature| !is_internal(feature))
    }

    /// Returns the features that only others turn on or that only turn on others.
    pub(crate) fn internal_features(&self) -> impl Iterator<Item = &str> {
        self.features.keys().map(String::as_str).filter(|feature| is_internal(feature))
    }

    /// The name that the compiler gives the library; programs have none.
    pub(crate) fn library(&self) -> Option<&str> {
        let is_library = |target: &&Target| target.kind.iter().any(|kind| kind == "lib" || kind == "proc-macro");
        self.targets.iter().find(is_library).map(|target| target.name.as_str())
    }
}

fn is_internal(feature: &str) -> bool {
    feature == "default" || feature.starts_with("__")
}
