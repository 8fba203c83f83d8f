//! Checks the structure of the runtime. Data flows in one direction: no file depends on itself through others, no
//! folder imports a folder above it, and each import names the module that defines its item. No function of this
//! repository is too long, and no name of one.
//!
//! A file depends on the files that it imports, and on the files that contain the methods that it calls. An `impl` can
//! be in another file than its type, and then no import names that file.

mod code;
mod folders;
mod functions;
mod methods;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::step::Failure;
use crate::structure::code::{code, defining_module, paths};
use crate::structure::folders::{both_ways, is_above};
use crate::structure::functions::long_functions;
use crate::structure::methods::methods_elsewhere;
use crate::workspace::root;

const NAME: &str = "the structure of the code";
const RUNTIME: &str = "idempotent-runtime/src";

/// These tests may import whatever they test, and are in no build that users have.
const CONCURRENCY_TESTS: &str = "concurrency_tests";

/// The path of a file in the module tree; empty for the root of the crate.
type Module = Vec<String>;

pub(crate) fn check() -> Result<(), Failure> {
    let mut sources = BTreeMap::new();
    read(root(), &mut sources)?;
    let mut complaints = complaints(&runtime(&sources));
    complaints.extend(sources.iter().flat_map(|(path, text)| {
        let path = path.strip_prefix(root()).unwrap_or(path).display();
        long_functions(text).map(move |complaint| format!("{path}: {complaint}"))
    }));
    if complaints.is_empty() { Ok(()) } else { Err(Failure::of(NAME, complaints.join("\n"))) }
}

/// Reads the Rust files in a folder of this repository.
fn read(folder: &Path, sources: &mut BTreeMap<PathBuf, String>) -> Result<(), Failure> {
    let failed = |path: &Path, error| Failure::of(NAME, format!("{}: {error}", path.display()));
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
            sources.insert(path, text);
        } else if path.is_dir() && name != "target" && !name.starts_with('.') {
            read(&path, sources)?;
        }
    }
    Ok(())
}

/// The files of the runtime by their places in the module tree, without files of tests.
fn runtime(sources: &BTreeMap<PathBuf, String>) -> BTreeMap<Module, String> {
    let module = |path: &PathBuf| {
        let path = path.strip_prefix(root().join(RUNTIME)).ok()?.with_extension("");
        let mut module: Module = path.iter().map(|segment| segment.to_string_lossy().into_owned()).collect();
        module.pop_if(|name| name == "mod" || name == "lib");
        let is_of_tests = module.iter().any(|name| name == CONCURRENCY_TESTS || name == "tests");
        (!is_of_tests).then_some(module)
    };
    sources.iter().filter_map(|(path, text)| Some((module(path)?, text.clone()))).collect()
}

fn complaints(files: &BTreeMap<Module, String>) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut dependencies = BTreeMap::new();
    let methods = methods_elsewhere(files);
    for (module, text) in files.iter().filter(|(module, _)| !module.is_empty()) {
        let code = code(text);
        let called = methods.iter().filter(|method| method.file != module && method.is_called_by(&code));
        let mut of_file: BTreeSet<Module> = called.map(|method| method.file.clone()).collect();
        for path in paths(&code) {
            if path.first().is_some_and(|first| first == CONCURRENCY_TESTS) {
                continue;
            }
            match defining_module(files, &path) {
                Some(target) if target.is_empty() => complaints.push(format!(
                    "{}: `crate::{}` goes through lib.rs: name the module that defines it",
                    name(module),
                    path.join("::")
                )),
                Some(target) if is_above(&target, module) => {
                    complaints.push(format!(
                        "{}: `{}` lies above it: move what both need down",
                        name(module),
                        name(&target)
                    ));
                }
                Some(target) if target != *module => _ = of_file.insert(target),
                _ => {}
            }
        }
        dependencies.insert(module.clone(), of_file);
    }
    match circle(&dependencies) {
        Some(circle) => {
            let names: Vec<String> = circle.iter().map(|module| name(module)).collect();
            complaints.push(format!("these files depend on each other in a circle: {}", names.join(" -> ")));
        }
        None => complaints.extend(both_ways(&dependencies)),
    }
    complaints
}

fn name(module: &[String]) -> String {
    module.join("/")
}

/// A path from a file back to itself, if one exists.
fn circle(dependencies: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut done = BTreeSet::new();
    dependencies.keys().find_map(|start| walk(dependencies, start, &mut Vec::new(), &mut done))
}

fn walk(
    dependencies: &BTreeMap<Module, BTreeSet<Module>>,
    module: &Module,
    way: &mut Vec<Module>,
    done: &mut BTreeSet<Module>,
) -> Option<Vec<Module>> {
    if let Some(begin) = way.iter().position(|passed| passed == module) {
        let mut circle = way[begin..].to_vec();
        circle.push(module.clone());
        return Some(circle);
    }
    if !done.insert(module.clone()) {
        return None;
    }
    way.push(module.clone());
    let found = dependencies.get(module).into_iter().flatten().find_map(|next| walk(dependencies, next, way, done));
    way.pop();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(of: &[(&str, &str)]) -> BTreeMap<Module, String> {
        let module = |name: &str| name.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        of.iter().map(|&(name, text)| (module(name), text.to_owned())).collect()
    }

    #[test]
    fn circle_over_three_files_is_told() {
        let files = files(&[
            ("", ""),
            ("a", "use crate::b::B;"),
            ("b", "use crate::c::d::{\n    D,\n};"),
            ("c/d", "fn f() -> crate::a::A {}"),
            ("e", "use crate::a::A;"),
        ]);
        assert_eq!(complaints(&files), ["these files depend on each other in a circle: a -> b -> c/d -> a"]);
    }

    #[test]
    fn method_in_another_file_than_its_type_is_a_dependency() {
        let files = files(&[
            ("", ""),
            ("a", "pub struct A;\n\nimpl A {\n    fn run(self) {\n        self.end();\n    }\n}\n\nfn end() {}"),
            ("b", "use crate::a::A;\n\nimpl A {\n    pub(super) fn end(self) {}\n}"),
            ("c", "struct C;\n\nimpl C {\n    fn run(self) {\n        self.end();\n    }\n}"),
        ]);
        assert_eq!(complaints(&files), ["these files depend on each other in a circle: a -> b -> a"]);
    }

    #[test]
    fn call_of_a_unique_name_is_a_dependency() {
        let files = files(&[
            ("", ""),
            ("a", "pub struct A { settled: () }\n\nfn run(a: A) {\n    a.settle();\n}"),
            (
                "b",
                "use crate::a::A;\n\nimpl<'a, T: Into<A>> A {\n    pub(super) fn settle(self) {}\n    pub(super) fn settled(self) {}\n}",
            ),
            ("c", "use crate::b;\n\nfn look(a: A) {\n    a.settled\n}"),
        ]);
        assert_eq!(complaints(&files), ["these files depend on each other in a circle: a -> b -> a"]);
    }

    #[test]
    fn import_from_above_is_told() {
        let files = files(&[
            ("", ""),
            ("observe", "use crate::request::claim::Claim;"),
            ("registry", "use crate::request::watches::Watches;"),
            ("request/claim", "use crate::registry::Registry;"),
            ("request/watches", ""),
        ]);
        let complaint = "registry: `request/watches` lies above it: move what both need down";
        assert_eq!(complaints(&files)[..], [complaint]);
    }

    #[test]
    fn import_in_both_directions_between_folders_is_told() {
        let files = files(&[
            ("", ""),
            ("a/x", "use crate::b::x::X;"),
            ("b/x", ""),
            ("b/y", "use crate::a::y::Y;\nuse crate::record::x::X;"),
            ("a/y", "use crate::c;"),
            ("c", ""),
            ("record/y", "use crate::store::x::X;"),
            ("record/x", ""),
            ("store/x", ""),
            ("store/y", "use crate::record::x::X;"),
        ]);
        let complaint = "the folders `a` and `b` depend on each other: move what both need down";
        assert_eq!(complaints(&files)[..], [complaint]);
    }

    #[test]
    fn import_through_the_root_is_told() {
        let files = files(&[
            ("", "pub use crate::a::A;"),
            ("a", ""),
            ("b", "use crate::A;\n// crate::A\n#[cfg(test)]\nmod tests"),
        ]);
        assert_eq!(complaints(&files), ["b: `crate::A` goes through lib.rs: name the module that defines it"]);
    }

    #[test]
    fn repository_has_no_complaint() {
        assert_eq!(check().map_err(|failure| failure.to_string()), Ok(()));
    }

    #[test]
    fn one_way_is_no_circle() {
        let files = files(&[("", ""), ("a", "use crate::b::B;\nuse crate::c;"), ("b", "use crate::c::C;"), ("c", "")]);
        assert_eq!(complaints(&files), Vec::<String>::new());
    }
}
