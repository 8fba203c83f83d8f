//! Checks the structure of the runtime. Data flows in one direction: no file depends on itself through others, no
//! folder imports a folder above it, and each import names the module that defines its item. No function of the
//! runtime or the attribute is too long.
//!
//! A file depends on the files that it imports, and on the files that contain the methods that it calls. An `impl` can
//! be in another file than its type, and then no import names that file.

mod code;
mod functions;
mod methods;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::step::Failure;
use crate::structure::code::{code, defining_module, paths};
use crate::structure::functions::too_long;
use crate::structure::methods::methods_elsewhere;

const NAME: &str = "the structure of the runtime";
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../idempotent-runtime/src");
const SOURCES_OF_ATTRIBUTE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../idempotent-macros/src");

/// A folder must not import the folders after it in this list. Not in the list are `record`, `observe` and `transaction`, which `store` imports and
/// which import `store`; between files there is no circle there either.
const LAYERS: [&str; 12] = [
    "fingerprint",
    "policy",
    "rejection",
    "store",
    "lease",
    "registry",
    "step",
    "request",
    "layer",
    "operate",
    "inspector",
    "openapi",
];

const CONCURRENCY_TESTS: &str = "concurrency_tests";

/// The path of a file in the module tree; empty for the root of the crate.
type Module = Vec<String>;

pub(crate) fn check() -> Result<(), Failure> {
    let mut files = BTreeMap::new();
    read(Path::new(SOURCES), &[], &mut files)?;
    let mut complaints = complaints(&files);
    complaints.extend(long_functions(&files));
    let mut of_attribute = BTreeMap::new();
    read(Path::new(SOURCES_OF_ATTRIBUTE), &["idempotent-macros".to_owned()], &mut of_attribute)?;
    complaints.extend(long_functions(&of_attribute));
    if complaints.is_empty() {
        return Ok(());
    }
    Err(Failure::of(NAME, complaints.join("\n")))
}

fn read(folder: &Path, module: &[String], files: &mut BTreeMap<Module, String>) -> Result<(), Failure> {
    let failed = |path: &Path, error| Failure::of(NAME, format!("{}: {error}", path.display()));
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut inner = module.to_vec();
        if path.is_dir() {
            // These tests may import whatever they test.
            if stem != CONCURRENCY_TESTS {
                inner.push(stem);
                read(&path, &inner, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") && stem != "tests" {
            if stem != "mod" && stem != "lib" {
                inner.push(stem);
            }
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
            files.insert(inner, text);
        }
    }
    Ok(())
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
            // This folder is in no build that users have.
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
    if let Some(circle) = circle(&dependencies) {
        let names: Vec<String> = circle.iter().map(|module| name(module)).collect();
        complaints.push(format!("these files depend on each other in a circle: {}", names.join(" -> ")));
    }
    complaints
}

fn long_functions(files: &BTreeMap<Module, String>) -> impl Iterator<Item = String> {
    files.iter().flat_map(|(module, text)| {
        let told = |(function, lines)| format!("{}: `{function}` has {lines} lines: split it", name(module));
        too_long(text).into_iter().map(told)
    })
}

fn is_above(target: &[String], module: &[String]) -> bool {
    let layer =
        |module: &[String]| LAYERS.iter().position(|layer| module.first().is_some_and(|folder| folder == layer));
    layer(module).is_some_and(|below| layer(target).is_some_and(|above| above > below))
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
    fn import_through_the_root_is_told() {
        let files = files(&[
            ("", "pub use crate::a::A;"),
            ("a", ""),
            ("b", "use crate::A;\n// crate::A\n#[cfg(test)]\nmod tests"),
        ]);
        assert_eq!(complaints(&files), ["b: `crate::A` goes through lib.rs: name the module that defines it"]);
    }

    #[test]
    fn runtime_has_no_complaint() {
        assert_eq!(check().map_err(|failure| failure.to_string()), Ok(()));
    }

    #[test]
    fn one_way_is_no_circle() {
        let files = files(&[("", ""), ("a", "use crate::b::B;\nuse crate::c;"), ("b", "use crate::c::C;"), ("c", "")]);
        assert_eq!(complaints(&files), Vec::<String>::new());
    }
}
