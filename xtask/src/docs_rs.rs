//! Builds the documentation as docs.rs does: with a nightly compiler and all features. Checks that each item says which
//! features it needs.

use std::fs;
use std::io;
use std::path::Path;

use crate::nightly;
use crate::step::Failure;
use crate::workspace::{Package, Workspace, root, target};

const NAME: &str = "the documentation as on docs.rs";

/// Features that change behaviour, and add no items.
const WITHOUT_ITEMS: [&str; 3] = ["opentelemetry", "redis-sentinel", "tls"];

pub(crate) fn check(workspace: &Workspace) -> Result<(), Failure> {
    if !nightly::is_there() {
        let advice = "run `rustup toolchain install nightly --profile minimal`, and then this again";
        return Err(Failure::of(NAME, format!("docs.rs uses a nightly compiler, and there is none here; {advice}")));
    }
    let folder = target().join("docs-rs");
    // Remove old pages: pages of items that no longer exist would still have their badges.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| Failure::of(NAME, error))?;
    }
    for package in workspace.published() {
        let Some(library) = package.library() else { continue };
        nightly::cargo(
            &format!("{NAME}: {}", package.name),
            &format!("doc --no-deps --all-features -p {}", package.name),
        )
        .within(root())
        .env("CARGO_TARGET_DIR", &folder)
        .env("RUSTDOCFLAGS", "--cfg docsrs -D warnings")
        .run()?;
        if package.name == "idempotent-runtime" {
            every_feature_has_a_badge(package, &folder.join("doc").join(library))?;
        }
        println!("{}", folder.join("doc").join(library).join("index.html").display());
    }
    // The compiled dependencies, a gigabyte that is not needed any more.
    fs::remove_dir_all(folder.join("debug")).map_err(|error| Failure::of(NAME, error))
}

fn every_feature_has_a_badge(package: &Package, pages: &Path) -> Result<(), Failure> {
    let mut badges = String::new();
    collect_badges(pages, &mut badges).map_err(|error| Failure::of(NAME, format!("{}: {error}", pages.display())))?;
    let with_items = package.features().filter(|feature| !WITHOUT_ITEMS.contains(feature));
    let missing: Vec<_> = with_items.filter(|feature| !badges.contains(&format!("<code>{feature}</code>"))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let advice =
        "see `#![cfg_attr(docsrs, feature(doc_cfg))]` in lib.rs, or say it by `#[cfg_attr(docsrs, doc(cfg(…)))]`";
    Err(Failure::of(NAME, format!("nothing is said to need the features {}: {advice}", missing.join(", "))))
}

fn collect_badges(folder: &Path, badges: &mut String) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_badges(&path, badges)?;
        } else if path.extension().is_some_and(|extension| extension == "html") {
            let page = fs::read_to_string(&path)?;
            let found = page.split("stab portability").skip(1).filter_map(|rest| rest.split("</span>").next());
            badges.extend(found);
        }
    }
    Ok(())
}
