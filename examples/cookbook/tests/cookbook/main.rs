//! Checks that docs/cookbook.md is true: it shows these programs, and its commands print what it says.

mod page;
mod session;

use std::fs;
use std::path::Path;

use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;

use self::page::Page;
use self::session::Session;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn every_program_of_the_page_is_one_of_these() {
    let page = Page::read();
    let programs =
        ["main.rs", "bin/on-redis.rs", "bin/on-postgres.rs", "bin/swagger-and-metrics.rs", "../tests/charges.rs"];
    for program in programs {
        let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(program));
        let source = source.unwrap_or_else(|error| panic!("{program}: {error}"));
        // The first line of the program is a comment. The page has a sentence in its place.
        let (_, shown) = source.split_once("\n\n").expect("a line about the program, and the program");
        assert!(
            page.blocks("rust").any(|block| block == shown.trim_end()),
            "the page does not show {program} as it is"
        );
    }
}

#[test]
fn misspelled_argument_gets_the_error_on_the_page() {
    let page = Page::read();
    let said = fs::read_to_string(format!("{ROOT}/ui-tests/fail/args/unknown-argument.stderr")).expect("the messages");
    let shown: Vec<_> = page.blocks("text").collect();
    assert!(!shown.is_empty());
    for message in shown {
        assert!(said.contains(message), "no test of a message shows\n{message}");
    }
}

#[tokio::test]
async fn the_commands_answer_as_the_page_says() {
    let page = Page::read();
    let commands = page.commands();
    assert!(commands.len() > 50, "only {} commands", commands.len());
    let database = PostgresServer::shared().await.database().await;
    let redis = RedisServer::shared().await;
    let answers = Session::new(&redis.url(), &database.url()).play(&commands);
    assert_eq!(answers.len(), commands.len());
    for (command, answer) in commands.iter().zip(&answers) {
        assert!(
            command.is_answered_by(answer),
            "$ {}\nThe page says:\n{}\nThe program says:\n{answer}",
            command.text,
            command.output.join("\n"),
        );
    }
}
