//! Finds methods that are in another file than their type. A call of such a method is a dependency that no import
//! shows.

use std::collections::BTreeMap;

use crate::structure::Module;
use crate::structure::code::{code, first_word, is_of_word};

/// A method that a file adds to a type of another file.
pub(super) struct Method<'a> {
    pub(super) file: &'a Module,
    of_type: String,
    name: String,
    /// Whether no other method has this name. If another one has, only a call on `self` tells which of them is called.
    has_unique_name: bool,
}

impl Method<'_> {
    pub(super) fn is_called_by(&self, code: &str) -> bool {
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

pub(super) fn methods_elsewhere(files: &BTreeMap<Module, String>) -> Vec<Method<'_>> {
    let mut definitions = BTreeMap::<String, usize>::new();
    let mut methods = Vec::new();
    for (file, text) in files {
        let code = code(text);
        for (header, line) in lines_of_impls(&code) {
            let Some(name) = defined_function(line) else { continue };
            *definitions.entry(name.to_owned()).or_default() += 1;
            if let Some(Header { of_type, is_of_trait: false }) = header
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

/// Each line, with the `impl` that contains it.
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
