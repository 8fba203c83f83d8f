//! Runs the program as its users do.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use idempotent_tests::{Answer, answer};

struct Program {
    child: Child,
    address: String,
}

impl Program {
    fn start(database: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stripe-dialect"));
        command.args(["--addr", "127.0.0.1:0", "--database"]).arg(database);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
        let greeting = child.stdout.as_mut().expect("a piped output");
        let mut line = String::new();
        BufReader::new(greeting).read_line(&mut line).expect("a greeting");
        let address = line.strip_prefix("listening on http://").and_then(|rest| rest.split_once("; secret keys: "));
        let (address, keys) = address.unwrap_or_else(|| panic!("{line}"));
        assert_eq!(keys.trim(), "sk_test_tea");
        Self { child, address: address.to_owned() }
    }

    async fn pay(&self) -> Answer {
        let request = reqwest::Client::new().post(format!("http://{}/v1/payment_intents", self.address));
        let request = request.header("authorization", "Bearer sk_test_tea").header("idempotency-key", "k");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        answer(request.body("amount=1999&currency=eur&payment_method=pm_card_visa&confirm=true")).await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_payment_is_replayed_after_a_kill() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database = folder.path().join("stripe.db");
    let first = Program::start(&database).pay().await;
    let again = Program::start(&database).pay().await;
    assert_eq!((first.is_replay(), again.is_replay()), (false, true));
    assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
}

#[test]
fn a_wrong_option_is_named() {
    let fails = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_stripe-dialect")).args(arguments).output();
        let Output { status, stderr, .. } = output.expect("the program starts");
        assert!(!status.success());
        String::from_utf8_lossy(&stderr).into_owned()
    };
    assert!(fails(&["--addr", "nowhere"]).contains("--addr"));
    assert!(fails(&["--secret-key", "sk_live_tea"]).contains("`sk_test_`"));
    assert!(fails(&["--database", "/nowhere/stripe.db"]).contains("/nowhere/stripe.db"));
}
