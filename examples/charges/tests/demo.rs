//! Runs the program as its users do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use anstyle::{Color, RgbColor};
use anstyle_svg::Term;

fn charges(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_charges")).args(arguments).output().expect("the program starts")
}

/// One run for all tests, with the colours of a terminal.
static DEMO: LazyLock<Output> = LazyLock::new(|| {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_charges"));
    demo.arg("demo").env_remove("NO_COLOR").env("CLICOLOR_FORCE", "1").output().expect("the program starts")
});

fn said() -> String {
    String::from_utf8_lossy(&anstream::adapter::strip_bytes(&DEMO.stdout).into_vec()).into_owned()
}

#[test]
fn the_demo_plays_every_scene_and_charges_no_customer_twice() {
    let (said, errors) = (said(), String::from_utf8_lossy(&DEMO.stderr));
    assert!(DEMO.status.success(), "{said}{errors}");
    assert!(said.contains("11. ") && said.contains("no customer was charged twice"), "{said}");
    assert!(!said.contains('✗'), "{said}");
}

/// `cargo xtask picture` writes the picture.
#[test]
fn the_picture_in_the_readme_is_of_this_demo() {
    let picture = picture(&String::from_utf8_lossy(&DEMO.stdout));
    let path = in_repository("docs/demo.svg");
    if std::env::var_os("DEMO_PICTURE").is_some() {
        fs::write(&path, &picture).expect("the picture can be written");
    }
    let shown = fs::read_to_string(&path).expect("the picture is there");
    assert_eq!(steady(&shown), steady(&picture), "draw it again with `cargo xtask picture`");
}

/// The README omits lines only where it shows `…`.
#[test]
fn the_readme_shows_what_the_demo_says() {
    let readme = fs::read_to_string(in_repository("README.md")).expect("the README is there");
    let (_, shown) = readme.split_once("$ cargo run -p charges -- demo\n").expect("the README shows the demo");
    let (shown, _) = shown.split_once("\n```").expect("a block ends");
    let (said, shown) = (steady(&said()), steady(shown));
    let mut lines = said.lines().filter(|line| !line.is_empty());
    let mut left_out = false;
    for shown in shown.lines() {
        if shown == "…" {
            left_out = true;
        } else if left_out {
            assert!(lines.any(|line| line == shown), "the demo does not say, there or later: {shown}");
            left_out = false;
        } else {
            assert_eq!(lines.next(), Some(shown), "the README omits lines only where it shows `…`");
        }
    }
    assert_eq!(lines.next(), None, "the README omits the end");
}

fn in_repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

/// The picture of a terminal with this text.
fn picture(said: &str) -> String {
    const GROUND: Color = Color::Rgb(RgbColor(0x16, 0x1b, 0x22));
    const INK: Color = Color::Rgb(RgbColor(0xe6, 0xed, 0xf3));
    let mut palette = anstyle_svg::VGA;
    // Green, and bright black for asides, so that both are readable on this background.
    palette.0[2] = RgbColor(0x3f, 0xb9, 0x50);
    palette.0[8] = RgbColor(0x8b, 0x94, 0x9e);
    let terminal = Term::new().palette(palette).bg_color(GROUND).fg_color(INK);
    terminal.render_svg(&format!("\u{1b}[1m$ cargo run -p charges -- demo\u{1b}[0m\n{said}"))
}

/// The text without what differs between runs: process ids, and how many of fifty requests were rejected or replayed.
fn steady(text: &str) -> String {
    let mut steady = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '0'..='9' if steady.ends_with('#') => {}
            '0'..='9' => steady.push('#'),
            other => steady.push(other),
        }
    }
    steady
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
        (&["--network-secret", "short"], "at least 16 characters"),
    ] {
        let output = charges(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(named), "{named} in {errors}");
    }
}

#[test]
fn public_secret_is_rejected_beyond_loopback() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().to_str().expect("a path in UTF-8");
    let output = charges(&["--addr", "192.0.2.1:0", "--data", data]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("CHARGES_NETWORK_SECRET"), "{errors}");
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
