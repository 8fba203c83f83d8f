//! Without the feature `metrics`, there are no metrics and no recorder.

use std::process::Command;

fn dependencies(features: &str) -> String {
    let mut tree = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    tree.args(["tree", "--offline", "--locked", "--package=idempotent-runtime", "--edges=normal", "--prefix=none"]);
    tree.args(["--no-default-features", &format!("--features={features}")]);
    let output = tree.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the tree is text")
}

#[test]
fn without_the_feature_the_facade_is_not_even_a_dependency() {
    const OTHERS: &str = "macros,memory,postgres,redis-cluster,seal,sqlite,testing";
    let has_facade = |tree: &str| tree.lines().any(|line| line.starts_with("metrics v"));
    assert!(!has_facade(&dependencies(OTHERS)));
    assert!(has_facade(&dependencies("metrics")));
}
