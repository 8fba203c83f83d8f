//! Compiles every case, runs those of `pass/`, and compares the messages of those of `fail/`.

#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.pass("pass/*.rs");
    cases.compile_fail("fail/*/*.rs");
}
