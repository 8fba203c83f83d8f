//! The page as a reader sees it: blocks of code, and commands with their output.

use std::fs;

/// The text of docs/cookbook.md.
pub(crate) struct Page(String);

/// A command of a `console` block.
pub(crate) struct Command {
    pub(crate) text: String,
    /// The lines of its output that the page shows.
    pub(crate) output: Vec<String>,
}

impl Page {
    pub(crate) fn read() -> Self {
        Self(fs::read_to_string(format!("{}/docs/cookbook.md", super::ROOT)).expect("the page is there"))
    }

    /// The blocks in this language, whatever follows the name of the language.
    pub(crate) fn blocks(&self, language: &str) -> impl Iterator<Item = &str> {
        let blocks = self.0.split("\n```").skip(1).step_by(2);
        blocks.filter_map(move |block| {
            let (head, body) = block.split_once('\n')?;
            (head.split(',').next() == Some(language)).then_some(body)
        })
    }

    /// All commands, in the order in which a reader pastes them.
    pub(crate) fn commands(&self) -> Vec<Command> {
        let mut commands: Vec<Command> = Vec::new();
        for block in self.blocks("console") {
            let mut lines = block.lines();
            while let Some(line) = lines.next() {
                if let Some(begun) = line.strip_prefix("$ ") {
                    let mut text = begun.to_owned();
                    while text.ends_with('\\') {
                        text.push('\n');
                        text.push_str(lines.next().expect("a command goes on after a backslash"));
                    }
                    commands.push(Command { text, output: Vec::new() });
                } else {
                    let command = commands.last_mut().expect("a block begins with a command");
                    command.output.push(line.to_owned());
                }
            }
        }
        commands
    }
}

impl Command {
    /// Whether the page shows this output. `…` matches anything in a line, and alone on a line it matches any number of
    /// lines.
    pub(crate) fn is_answered_by(&self, answer: &str) -> bool {
        let answer: Vec<&str> = answer.lines().map(|line| line.trim_end_matches('\r')).collect();
        let shown: Vec<&str> = self.output.iter().map(String::as_str).collect();
        lines_match(&shown, &answer)
    }
}

fn lines_match(shown: &[&str], answer: &[&str]) -> bool {
    match shown {
        [] => answer.is_empty(),
        ["…", rest @ ..] => (0..=answer.len()).any(|skipped| lines_match(rest, &answer[skipped..])),
        [line, rest @ ..] => {
            answer.split_first().is_some_and(|(first, answer)| line_matches(line, first) && lines_match(rest, answer))
        }
    }
}

fn line_matches(shown: &str, line: &str) -> bool {
    let Some((before, after)) = shown.split_once('…') else { return shown == line };
    line.strip_prefix(before).is_some_and(|rest| {
        let mut ends = (0..=rest.len()).filter(|&end| rest.is_char_boundary(end));
        ends.any(|end| line_matches(after, &rest[end..]))
    })
}

#[test]
fn an_ellipsis_stands_for_what_differs() {
    let shows = |output: &[&str], answer| {
        Command { text: String::new(), output: output.iter().map(ToString::to_string).collect() }.is_answered_by(answer)
    };
    assert!(shows(&["a", "…", "d"], "a\r\nb\nc\nd\n") && shows(&["a", "…", "d"], "a\nd\n"));
    assert!(shows(&["{…\"status\":1,…}"], "{\"type\":2,\"status\":1,\"code\":3}"));
    assert!(shows(&["date: …"], "date: today"));
    assert!(!shows(&["a"], "a\nb") && !shows(&["a", "b"], "a") && !shows(&[], "a"));
    assert!(!shows(&["{…\"status\":1,…}"], "{\"type\":2,\"status\":2,\"code\":3}"));
    assert!(!shows(&["a…c"], "abcd") && !shows(&["a…"], "ba"));
}
