//! Compiles every case, runs those of `pass/`, and compares the messages of those of `fail/`.

#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.pass("pass/*.rs");
    cases.compile_fail("fail/*/*.rs");
}

/// With the component `rust-src` the compiler quotes the standard library where a message points into it.
#[test]
fn messages_do_not_point_into_the_standard_library() {
    let folders = std::fs::read_dir("fail").expect("the cases are here");
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.expect("a folder").path()).expect("its cases"));
    let paths = files.map(|file| file.expect("a file").path());
    let messages: Vec<_> = paths.filter(|path| path.extension().is_some_and(|name| name == "stderr")).collect();
    assert!(messages.len() > 50, "{} messages", messages.len());
    for path in messages {
        let message = std::fs::read_to_string(&path).expect("a message");
        let points_there = ["$RUST", "/rustc/", "rustlib/src"].iter().find(|place| message.contains(**place));
        assert_eq!(
            points_there,
            None,
            "{}: shape the case so that its message stays within the workspace",
            path.display()
        );
    }
}
