//! In which direction the folders of the runtime import each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::structure::Module;

/// A folder must not import the folders after it in this list. `record`, `observe` and `transaction` are not in the
/// list, because of [`BOTH_WAYS`].
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

/// The folders that import each other; between their files there is no circle. What one of them has, the other one's
/// contract names: a `Record` that a store keeps or fails to decode, the `StoreError` of a call that is measured, a
/// transaction that begins with its claim.
const BOTH_WAYS: [(&str, &str); 4] =
    [("observe", "store"), ("observe", "transaction"), ("record", "store"), ("store", "transaction")];

pub(super) fn is_above(target: &[String], module: &[String]) -> bool {
    let layer =
        |module: &[String]| LAYERS.iter().position(|layer| module.first().is_some_and(|folder| folder == layer));
    layer(module).is_some_and(|below| layer(target).is_some_and(|above| above > below))
}

/// Complains of two folders that depend on each other.
pub(super) fn both_ways(dependencies: &BTreeMap<Module, BTreeSet<Module>>) -> impl Iterator<Item = String> {
    let between_files = dependencies.iter().flat_map(|(module, of_file)| of_file.iter().map(move |on| (module, on)));
    let folders: BTreeSet<_> = between_files.filter_map(|(module, on)| Some((module.first()?, on.first()?))).collect();
    let pairs: Vec<_> = folders.iter().copied().filter(|(a, b)| a < b && folders.contains(&(b, a))).collect();
    let unknown = pairs.into_iter().filter(|(a, b)| !BOTH_WAYS.contains(&(a, b)));
    unknown.map(|(a, b)| format!("the folders `{a}` and `{b}` depend on each other: move what both need down"))
}
