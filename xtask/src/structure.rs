//! The structure of the runtime: data flows one way, so no file depends on itself by way of others, no folder imports one
//! above it, and each import names the module that defines its item.
//!
//! A file depends on those that it imports, and on those in which methods that it calls lie: an `impl` of a type need not lie
//! in the type's own file, and no import names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::step::Failure;

const NAME: &str = "the structure of the runtime";
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../idempotent-runtime/src");

/// A folder imports none of those that follow it.
const LAYERS: [&str; 6] = ["store", "lease", "registry", "step", "request", "layer"];

/// The type of such a store has its methods in many files, by subject: between them, only imports count.
const ONE_TYPE_IN_MANY_FILES: [[&str; 2]; 2] = [["store", "postgres"], ["store", "redis"]];

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
    let mut dependencies = BTreeMap::new();
    let methods = methods_elsewhere(files);
    for (module, text) in files.iter().filter(|(module, _)| !module.is_empty()) {
        let code = code(text);
        let called = methods.iter().filter(|method| method.file != module && method.is_called_by(&code));
        let mut of_file: BTreeSet<Module> = called.map(|method| method.file.clone()).collect();
        for path in paths(&code) {
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

fn is_above(target: &[String], module: &[String]) -> bool {
    let layer =
        |module: &[String]| LAYERS.iter().position(|layer| module.first().is_some_and(|folder| folder == layer));
    layer(module).is_some_and(|below| layer(target).is_some_and(|above| above > below))
}

fn name(module: &[String]) -> String {
    module.join("/")
}

/// The text without comments, as far as it is no test's.
fn code(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The word at the begin of the text.
fn first_word(text: &str) -> &str {
    &text[..text.find(|c| !is_of_word(c)).unwrap_or(text.len())]
}

/// A method that a file adds to a type of another file.
struct Method<'a> {
    file: &'a Module,
    of_type: String,
    name: String,
    /// Otherwise nothing tells which function a call means, unless it is a call on `self`.
    has_unique_name: bool,
}

impl Method<'_> {
    fn is_called_by(&self, code: &str) -> bool {
        let is_called = |line: &str| {
            line.match_indices(&self.name).any(|(start, _)| {
                let (before, after) = (&line[..start], &line[start + self.name.len()..]);
                let is_on_self = before.ends_with("self.") || before.ends_with("Self::");
                let is_path = before.ends_with("::") && !after.starts_with(is_of_word);
                let is_call = before.ends_with('.') && after.starts_with('(');
                (is_path || is_call) && (is_on_self || self.has_unique_name)
            })
        };
        if self.has_unique_name {
            return code.lines().any(is_called);
        }
        lines_of_impls(code)
            .any(|(header, line)| header.is_some_and(|header| header.of_type == self.of_type) && is_called(line))
    }
}

fn methods_elsewhere(files: &BTreeMap<Module, String>) -> Vec<Method<'_>> {
    let mut definitions = BTreeMap::<String, usize>::new();
    let mut methods = Vec::new();
    for (file, text) in files {
        let code = code(text);
        let is_exempt = ONE_TYPE_IN_MANY_FILES.iter().any(|folder| file.iter().take(2).eq(folder));
        for (header, line) in lines_of_impls(&code) {
            let Some(name) = defined_function(line) else { continue };
            *definitions.entry(name.to_owned()).or_default() += 1;
            if let Some(Header { of_type, is_of_trait: false }) = header
                && !is_exempt
                && !defines_type(&code, of_type)
            {
                let (of_type, name) = (of_type.to_owned(), name.to_owned());
                methods.push(Method { file, of_type, name, has_unique_name: false });
            }
        }
    }
    for method in &mut methods {
        method.has_unique_name = definitions.get(&method.name) == Some(&1);
    }
    methods
}

/// The first line of an `impl`.
#[derive(Clone, Copy)]
struct Header<'a> {
    of_type: &'a str,
    is_of_trait: bool,
}

impl<'a> Header<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let line = line.strip_prefix("impl")?;
        let mut depth = 0;
        let (parameters_end, _) = line.char_indices().find(|&(_, c)| {
            depth += i32::from(c == '<') - i32::from(c == '>');
            depth == 0
        })?;
        let implemented = &line[parameters_end + 1..];
        let (is_of_trait, of_type) = match implemented.split_once(" for ") {
            Some((_, of_type)) => (true, of_type),
            None => (false, implemented),
        };
        let path = of_type.trim_start().split(|c| !is_of_word(c) && c != ':').next()?;
        Some(Self { of_type: path.rsplit("::").next().unwrap_or(path), is_of_trait })
    }
}

/// Each line, with the `impl` that it is in.
fn lines_of_impls(code: &str) -> impl Iterator<Item = (Option<Header<'_>>, &str)> {
    code.lines().scan(None, |header, line| {
        match line {
            "}" => *header = None,
            _ if line.starts_with("impl") => *header = Header::read(line),
            _ => {}
        }
        Some((*header, line))
    })
}

fn defined_function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_definition = before.split_whitespace().all(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    Some(first_word(after)).filter(|name| is_definition && !name.is_empty())
}

fn defines_type(code: &str, name: &str) -> bool {
    ["struct ", "enum ", "union "]
        .iter()
        .any(|keyword| code.split(keyword).skip(1).any(|rest| first_word(rest) == name))
}

/// The paths from the root of the crate that the code names.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        // `$crate::` is a macro's, for others.
        if code[..start].ends_with(|c| is_of_word(c) || c == '$' || c == '"') {
            continue;
        }
        let mut rest = &code[start + "crate::".len()..];
        let mut path = Vec::new();
        loop {
            let segment = first_word(rest);
            let after = &rest[segment.len()..];
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
            ("policy", "use crate::request::claim::Claim;"),
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
