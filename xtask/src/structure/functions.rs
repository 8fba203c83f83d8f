//! How long functions are. Clippy's `too_many_lines` counts neither comments nor blank lines; a reader reads both.

/// The most lines between the braces of a function.
const LONGEST: usize = 60;

/// The functions of a formatted file that are too long, with the number of their lines.
pub(super) fn too_long(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let functions = (0..lines.len()).filter_map(|start| Some((name(lines[start])?, body(&lines[start..])?)));
    functions.filter(|(_, length)| *length > LONGEST).collect()
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

    #[test]
    fn function_with_a_line_too_many_is_told() {
        let body = |lines: usize| "        // One line.\n".repeat(lines);
        let text = format!(
            "impl A {{\n    pub(crate) async fn run<T>(\n        self,\n    ) -> T {{\n{}    }}\n\n    fn of() -> Self {{\n{}    }}\n}}\n",
            body(61),
            body(60)
        );
        assert_eq!(too_long(&text), [("run", 61)]);
    }

    #[test]
    fn method_without_a_body_has_no_length() {
        let text =
            format!("trait A {{\n    fn run(\n        self,\n    );\n{}\n}}\n", "    fn end(self);\n".repeat(61));
        assert_eq!(too_long(&text), []);
    }
}
