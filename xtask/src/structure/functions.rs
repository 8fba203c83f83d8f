//! How long functions and their names are. Clippy's `too_many_lines` counts neither comments nor blank lines; a reader
//! reads both.

/// The most lines between the braces of a function.
const LONGEST: usize = 60;

/// The most characters of a name. The names of tests are sentences.
const LONGEST_NAME: usize = 60;

/// Complains of the functions of a formatted file that are too long, and of their names.
pub(super) fn long_functions(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<&str> = text.lines().collect();
    (0..lines.len()).flat_map(move |start| {
        let name = name(lines[start]);
        let length = name.and_then(|_| body(&lines[start..])).filter(|length| *length > LONGEST);
        let is_long = name.filter(|name| name.len() > LONGEST_NAME);
        let told = is_long.map(|name| format!("the name `{name}` has {} characters: shorten it", name.len()));
        told.into_iter().chain(name.zip(length).map(|(name, lines)| format!("`{name}` has {lines} lines: split it")))
    })
}

/// The name of the function that is defined from this line on.
fn name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_definition = before.split_whitespace().all(|word| {
        matches!(word, "pub" | "const" | "async" | "unsafe") || (word.starts_with("pub(") && word.ends_with(')'))
    });
    let end = after.find(['(', '<'])?;
    is_definition.then(|| &after[..end])
}

/// The lines between the braces; `None` if there are none.
fn body(lines: &[&str]) -> Option<usize> {
    let indent = lines[0].len() - lines[0].trim_start().len();
    let is_level = |line: &str| line.len() > indent && !line[indent..].starts_with(' ');
    let begin = lines.iter().position(|line| is_level(line) && line.ends_with(['{', ';', '}']))?;
    let end = lines.iter().skip(begin + 1).position(|line| is_level(line) && line[indent..].starts_with('}'))?;
    lines[begin].ends_with('{').then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        long_functions(text).collect()
    }

    #[test]
    fn function_with_a_line_too_many_is_told() {
        let body = |lines: usize| "        // One line.\n".repeat(lines);
        let text = format!(
            "impl A {{\n    pub(crate) async fn run<T>(\n        self,\n    ) -> T {{\n{}    }}\n\n    fn of() -> Self {{\n{}    }}\n}}\n",
            body(61),
            body(60)
        );
        assert_eq!(told(&text), ["`run` has 61 lines: split it"]);
    }

    #[test]
    fn method_without_a_body_has_no_length() {
        let text =
            format!("trait A {{\n    fn run(\n        self,\n    );\n{}\n}}\n", "    fn end(self);\n".repeat(61));
        assert_eq!(told(&text), Vec::<String>::new());
    }

    #[test]
    fn name_with_a_character_too_many_is_told() {
        let name = |length: usize| "a".repeat(length);
        let text = format!("    #[test]\n    fn {}() {{}}\n\n    fn {}() {{}}\n", name(61), name(60));
        assert_eq!(told(&text), [format!("the name `{}` has 61 characters: shorten it", name(61))]);
    }
}
