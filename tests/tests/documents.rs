//! What the documents say is shown by a test is shown by one.

use std::fs;
use std::path::Path;

const DOCUMENTS: [&str; 1] = ["SECURITY.md"];

/// The names in backquotes that speak of a file of tests: `tests/tests/keys.rs::a_name`, or of all tests in it.
fn named_tests(document: &str) -> Vec<String> {
    let quoted = document.split('`').skip(1).step_by(2);
    let in_folders =
        quoted.filter(|name| ["tests/", "invariants/", "examples/"].iter().any(|folder| name.starts_with(folder)));
    in_folders.map(str::to_owned).collect()
}

fn exists(root: &Path, named: &str) -> bool {
    let (file, test) = named.split_once("::").map_or((named, None), |(file, test)| (file, Some(test)));
    match test {
        None => root.join(file).exists(),
        Some(test) => {
            let source = fs::read_to_string(root.join(file)).unwrap_or_default();
            [format!("fn {test}("), format!("{test} =>")].iter().any(|definition| source.contains(definition))
        }
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in DOCUMENTS {
        let document = fs::read_to_string(root.join(name)).expect("the document is there");
        let tests = named_tests(&document);
        assert!(tests.len() > 5, "{name} names its tests");
        let missing: Vec<_> = tests.iter().filter(|named| !exists(&root, named)).collect();
        assert!(missing.is_empty(), "{name} names tests that are not there: {missing:#?}");
    }
}
