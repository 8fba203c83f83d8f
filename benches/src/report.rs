//! The results of a measurement: tables for people, and figures with their targets.

use serde::{Deserialize, Serialize};

/// One chapter of the results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// How it was measured, and what follows from it: paragraphs of Markdown.
    pub text: Vec<String>,
    /// The figures.
    pub tables: Vec<Table>,
    /// The table with which the results begin, if this section has it.
    #[serde(default)]
    pub summary: Option<Table>,
    /// The figures that have a target.
    pub targets: Vec<Target>,
    /// The lines of the plot of latency over load.
    pub curves: Vec<Curve>,
}

/// A table of figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// What the table shows.
    pub caption: String,
    /// The heads of the columns.
    pub columns: Vec<String>,
    /// The rows; the first cell names its row.
    pub rows: Vec<Vec<String>>,
}

/// One figure and its target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// What was measured.
    pub what: String,
    /// The target.
    pub target: String,
    /// The measured figure.
    pub measured: String,
    /// Whether the figure meets the target.
    pub met: bool,
}

/// Latency over load, for one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// The contender.
    pub name: String,
    /// Connections, requests per second, and the 99th percentile of the latency in milliseconds.
    pub points: Vec<(u32, f64, f64)>,
}

impl Section {
    /// A section without figures yet.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a figure that should be at most `limit`; `unit` follows both.
    pub fn at_most(&mut self, what: &str, limit: f64, measured: f64, unit: &str) {
        self.target(what, format!("≤ {}", figure(limit, unit)), figure(measured, unit), measured <= limit);
    }

    /// Adds a figure that should be at least `limit`; `unit` follows both.
    pub fn at_least(&mut self, what: &str, limit: f64, measured: f64, unit: &str) {
        self.target(what, format!("≥ {}", figure(limit, unit)), figure(measured, unit), measured >= limit);
    }

    fn target(&mut self, what: &str, target: String, measured: String, met: bool) {
        self.targets.push(Target { what: what.into(), target, measured, met });
    }

    /// Prints the section for the program that started this one.
    pub fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("a section is plain data"));
    }
}

impl Table {
    /// A table without rows.
    pub fn new(caption: &str, columns: &[&str]) -> Self {
        Self {
            caption: caption.into(),
            columns: columns.iter().map(|&column| column.into()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|---|{}\n", "---:|".repeat(self.columns.len().saturating_sub(1)));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n\n{}{rule}{rows}", self.caption, line(&self.columns))
    }
}

/// A number with its unit, with as many digits as are meaningful.
pub fn figure(number: f64, unit: &str) -> String {
    let digits = match number.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 0.1 || small == 0.0 => 2,
        _ => 4,
    };
    let number = format!("{number:.digits$}");
    if unit.is_empty() { number } else { format!("{number} {unit}") }
}

/// The median. For an even number of figures, the mean of the two middle ones.
///
/// # Panics
///
/// When there are no figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    assert!(!figures.is_empty(), "a median needs a figure");
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[middle] } else { f64::midpoint(figures[middle - 1], figures[middle]) }
}
