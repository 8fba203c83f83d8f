//! The program as its users start it.

use std::process::{Command, Output};

fn charges(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_charges")).args(arguments).output().expect("the program starts")
}

#[test]
fn the_demo_plays_every_scene_and_charges_nobody_twice() {
    let output = charges(&["demo"]);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("11. ") && said.contains("nobody was charged twice"), "{said}");
    assert!(!said.contains('✗'), "{said}");
}

#[test]
fn a_wrong_option_is_named() {
    for (arguments, named) in [
        (&["--address", "x"][..], "--addr"),
        (&["--addr", "nowhere"], "invalid socket address"),
        (&["--network-latency", "5"], "--network-latency"),
        (&["demmo"], "demo"),
        (&["--store", "mysql://localhost/app"], "`postgres://USER@HOST/DATABASE`"),
        (&["--store", "ledger.db"], "`sqlite:PATH`"),
    ] {
        let output = charges(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(named), "{named} in {errors}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound listener has an address").to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().to_str().expect("a path in UTF-8");
    let output = charges(&["--addr", &address, "--data", data]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&address) && errors.contains("--addr"), "{errors}");
}
