//! Runs every target on its seeds, and on the same few thousand mutations of them in each run.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fastrand::Rng;
use idempotent_invariants::TARGETS;

const MUTATIONS: usize = 3000;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    // The order of a folder depends on the file system, but the mutations must be the same everywhere.
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| fs::read(path).expect("a seed")).collect();
    assert!(seeds.len() >= 2, "{target} has too few seeds");
    seeds
}

/// Up to four small changes, of the kind that people mistype or that breaks decoders.
fn mutated(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.choice(seeds).expect("there are seeds").clone();
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 16));
        match rng.u8(0..7) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, rng.u8(..)),
            2 => bytes.insert(at, *rng.choice(b"\"'\\,;/%@={}[]()#!0179-+. \t\r\n").expect("there are some")),
            3 => bytes.truncate(at),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            5 => {
                let other = rng.choice(seeds).expect("there are seeds");
                let from = rng.usize(0..=other.len());
                let to = rng.usize(from..=other.len().min(from + 64));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << rng.u8(0..8)),
        }
    }
    bytes
}

#[test]
fn every_target_holds_for_its_seeds_and_for_what_is_near_them() {
    for (target, check) in TARGETS {
        let (seeds, mut rng) = (seeds(target), Rng::with_seed(7));
        let mutations = (0..MUTATIONS).map(|_| mutated(&mut rng, &seeds));
        for input in seeds.iter().cloned().chain(mutations) {
            let held = catch_unwind(AssertUnwindSafe(|| check(&input)));
            assert!(held.is_ok(), "{target} does not hold for \"{}\"", input.escape_ascii());
        }
    }
}

#[test]
fn every_target_has_its_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let files = fs::read_dir(folder).expect("the folder of the programs");
    let mut programs: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    programs.sort();
    let names: Vec<_> = programs.iter().map(|path| path.file_stem().expect("a name").to_string_lossy()).collect();
    assert_eq!(names, TARGETS.map(|(target, _)| target));
}
