//! The structure of the runtime: data flows one way, so no file imports itself by way of others, and each import names the
//! module that defines its item.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::step::Failure;

const NAME: &str = "the structure of the runtime";
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../idempotent-runtime/src");

const CONCURRENCY_TESTS: &str = "concurrency_tests";

/// A file's place in the tree of modules; the root of the crate has none.
type Module = Vec<String>;

pub(crate) fn check() -> Result<(), Failure> {
    let mut files = BTreeMap::new();
    read(Path::new(SOURCES), &[], &mut files)?;
    let complaints = complaints(&files);
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
            // They may look at whatever they test.
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
    let mut imports = BTreeMap::new();
    for (module, text) in files.iter().filter(|(module, _)| !module.is_empty()) {
        let mut of_file = BTreeSet::new();
        for path in paths(text) {
            // In no build that users have.
            if path.first().is_some_and(|first| first == CONCURRENCY_TESTS) {
                continue;
            }
            match defining_module(files, &path) {
                Some(target) if target.is_empty() => complaints.push(format!(
                    "{}: `crate::{}` goes through lib.rs: name the module that defines it",
                    name(module),
                    path.join("::")
                )),
                Some(target) if target != *module => _ = of_file.insert(target),
                _ => {}
            }
        }
        imports.insert(module.clone(), of_file);
    }
    if let Some(circle) = circle(&imports) {
        let names: Vec<String> = circle.iter().map(|module| name(module)).collect();
        complaints.push(format!("these files import each other in a circle: {}", names.join(" -> ")));
    }
    complaints
}

fn name(module: &[String]) -> String {
    module.join("/")
}

/// The paths from the root of the crate that the code names, as far as it is no test's.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut paths = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        // `$crate::` is a macro's, for others.
        if code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == '"') {
            continue;
        }
        let mut rest = &code[start + "crate::".len()..];
        let mut path = Vec::new();
        loop {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (segment, after) = rest.split_at(end);
            if !segment.is_empty() {
                path.push(segment.to_owned());
            }
            match after.strip_prefix("::") {
                Some(after) => rest = after,
                None => break,
            }
        }
        paths.push(path);
    }
    paths
}

/// The longest part of the path that is a file.
fn defining_module(files: &BTreeMap<Module, String>, path: &[String]) -> Option<Module> {
    let length = (0..=path.len()).rev().find(|&length| files.contains_key(&path[..length]))?;
    Some(path[..length].to_vec())
}

/// A way from a file back to itself, if there is one.
fn circle(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut done = BTreeSet::new();
    imports.keys().find_map(|start| walk(imports, start, &mut Vec::new(), &mut done))
}

fn walk(
    imports: &BTreeMap<Module, BTreeSet<Module>>,
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
    let found = imports.get(module).into_iter().flatten().find_map(|next| walk(imports, next, way, done));
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
        assert_eq!(complaints(&files), ["these files import each other in a circle: a -> b -> c/d -> a"]);
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
    fn one_way_is_no_circle() {
        let files = files(&[("", ""), ("a", "use crate::b::B;\nuse crate::c;"), ("b", "use crate::c::C;"), ("c", "")]);
        assert_eq!(complaints(&files), Vec::<String>::new());
    }
}
