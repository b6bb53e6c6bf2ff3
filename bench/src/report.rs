//! What a benchmark found, as tables for people and as JSON for programs.

use std::io::Write as _;

use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// The rows of one benchmark.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    rows: Vec<Row>,
}

/// One thing measured: what it was, its figures, and what they mean.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    columns: Vec<String>,
    lines: Vec<Line>,
    verdicts: Vec<Verdict>,
    notes: Vec<String>,
}

/// A figure of every column; one alone where there are none.
#[derive(Debug)]
struct Line {
    name: String,
    values: Vec<Option<f64>>,
}

/// A figure against what was wanted of it.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    /// Which figure, or which ratio.
    pub(crate) figure: String,
    /// What it is compared with; `None` for a figure that stands for itself.
    pub(crate) against: Option<(String, f64)>,
    pub(crate) value: f64,
    /// The ratio to `against`, or the value itself.
    pub(crate) ratio: f64,
    pub(crate) wanted: Wanted,
}

/// What a ratio should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
}

impl Wanted {
    fn reached(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(formatter, "<= {most}"),
            Self::AtLeast(least) => write!(formatter, ">= {least}"),
        }
    }
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
        }
    }

    /// Adds a row and shows on a terminal that it is done.
    pub(crate) fn push(&mut self, row: Row) {
        tell(&format!("{}: {} measured", self.name, row.what));
        self.rows.push(row);
    }

    pub(crate) fn print(&self, as_json: bool) {
        let text = if as_json {
            format!("{}\n", self.json())
        } else {
            let tables: String = self.rows.iter().map(Row::table).collect();
            Machine::this().line() + &tables
        };
        drop(std::io::stdout().write_all(text.as_bytes()));
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "benchmark": self.name, "machine": Machine::this().json(), "rows": rows })
    }
}

impl Row {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self::with_columns(what, Vec::new())
    }

    /// A row that compares: each figure has a value for every column, where there is one.
    pub(crate) fn with_columns(what: impl Into<String>, columns: Vec<String>) -> Self {
        Self {
            what: what.into(),
            columns,
            lines: Vec::new(),
            verdicts: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a figure; its name ends with its unit.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.line(name, vec![Some(value)]);
    }

    /// Adds a figure with one value per column.
    pub(crate) fn line(&mut self, name: impl Into<String>, values: Vec<Option<f64>>) {
        self.lines.push(Line {
            name: name.into(),
            values,
        });
    }

    pub(crate) fn verdict(&mut self, verdict: Verdict) {
        self.verdicts.push(verdict);
    }

    /// Adds a sentence for people.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    fn json(&self) -> Value {
        let mut figures = Map::new();
        for line in &self.lines {
            for (index, value) in line.values.iter().enumerate() {
                let name = match self.columns.get(index) {
                    Some(column) => format!("{column}_{}", line.name),
                    None => line.name.clone(),
                };
                if let Some(value) = value {
                    figures.insert(name, number(*value));
                }
            }
        }
        let verdicts: Vec<Value> = self.verdicts.iter().map(Verdict::json).collect();
        json!({
            "what": self.what,
            "figures": figures,
            "goals": verdicts,
            "notes": self.notes,
        })
    }

    fn table(&self) -> String {
        let mut text = format!("{}\n", self.what);
        if !self.columns.is_empty() {
            text.push_str(&format!("  {:<28}", ""));
            for column in &self.columns {
                text.push_str(&format!(" {column:>13}"));
            }
            text.push('\n');
        }
        let name_width = if self.columns.is_empty() { 40 } else { 28 };
        for line in &self.lines {
            text.push_str(&format!("  {:<name_width$}", line.name));
            for value in &line.values {
                let value = value.map_or_else(|| "-".to_owned(), rounded);
                text.push_str(&format!(" {value:>13}"));
            }
            text.push('\n');
        }
        for verdict in &self.verdicts {
            text.push_str(&format!("  {}\n", verdict.sentence()));
        }
        for note in &self.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text.push('\n');
        text
    }
}

impl Verdict {
    fn sentence(&self) -> String {
        let Self {
            figure,
            against,
            value,
            ratio,
            wanted,
        } = self;
        let reached = match wanted.reached(*ratio) {
            true => "reached",
            false => "NOT reached",
        };
        match against {
            Some((name, other)) => format!(
                "{figure}: {} is {ratio:.2} x {} of {name}; wanted {wanted}: {reached}",
                rounded(*value),
                rounded(*other),
            ),
            None => format!("{figure}: {}; wanted {wanted}: {reached}", rounded(*value)),
        }
    }

    fn json(&self) -> Value {
        json!({
            "figure": self.figure,
            "against": self.against.as_ref().map(|(name, _)| name),
            "ratio": number(self.ratio),
            "wanted": self.wanted.to_string(),
            "reached": self.wanted.reached(self.ratio),
        })
    }
}

fn number(value: f64) -> Value {
    json!(rounded(value).parse::<f64>().ok())
}

/// Four digits are as much as such measurements give.
fn rounded(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

/// The middle one; the mean of the two middle ones of an even number. 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.get(middle.wrapping_sub(1))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => {
            f64::midpoint(*upper, *lower)
        }
        (Some(value), _) => *value,
        (None, _) => 0.0,
    }
}

/// The value below which this share of them lies. 0 of none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    // A share between 0 and 1 of a length is a length.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index.min(last)).copied().unwrap_or(0.0)
}

/// Says something to whoever looks; it is no loss where nobody does.
pub(crate) fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Says why there is no report.
pub(crate) fn complain(error: &anyhow::Error) {
    tell(&format!("sg-bench: {error:#}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_quantiles_of_a_few() {
        assert_eq!(rounded(median(&[3.0, 1.0, 2.0])), "2.000");
        assert_eq!(rounded(median(&[4.0, 1.0, 2.0, 3.0])), "2.500");
        assert_eq!(rounded(median(&[])), "0");
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(rounded(quantile(&hundred, 0.99)), "99.000");
    }

    #[test]
    fn figures_of_columns_carry_their_names_and_goals_say_whether_they_are_reached() {
        let columns = ["direct", "product"].map(str::to_owned).to_vec();
        let mut row = Row::with_columns("a case", columns);
        row.line("cpu_s_per_gib", vec![None, Some(2.0)]);
        row.verdict(Verdict {
            figure: "cpu_s_per_gib".to_owned(),
            against: Some(("ssh".to_owned(), 4.0)),
            value: 2.0,
            ratio: 0.5,
            wanted: Wanted::AtMost(0.67),
        });
        let json = row.json();
        assert_eq!(json["figures"]["product_cpu_s_per_gib"], 2.0);
        assert!(json["figures"].get("direct_cpu_s_per_gib").is_none());
        assert_eq!(json["goals"][0]["reached"], true);
        let table = row.table();
        assert!(table.contains("wanted <= 0.67: reached"), "{table}");
    }
}
