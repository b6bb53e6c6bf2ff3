//! What a benchmark found, as a table for people and as JSON for programs.

use std::io::Write as _;

use serde_json::{Map, Value, json};

/// The rows of one benchmark.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    rows: Vec<Row>,
}

/// One thing measured: what it was, and its figures in the order they are printed.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    figures: Vec<(String, f64)>,
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
        // Progress is for whoever looks; it is no loss where nobody does.
        drop(writeln!(
            std::io::stderr(),
            "{}: {} measured",
            self.name,
            row.what
        ));
        self.rows.push(row);
    }

    pub(crate) fn print(&self, as_json: bool) {
        let text = if as_json {
            format!("{}\n", self.json())
        } else {
            self.table()
        };
        drop(std::io::stdout().write_all(text.as_bytes()));
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "benchmark": self.name, "rows": rows })
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            text.push_str(&row.what);
            text.push('\n');
            for (name, value) in &row.figures {
                text.push_str(&format!("  {name:<34} {:>12}\n", rounded(*value)));
            }
        }
        text
    }
}

impl Row {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figures: Vec::new(),
        }
    }

    /// Adds a figure; its name ends with its unit.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    fn json(&self) -> Value {
        let figures: Map<String, Value> = self
            .figures
            .iter()
            .map(|(name, value)| (name.clone(), json!(rounded(*value).parse::<f64>().ok())))
            .collect();
        json!({ "what": self.what, "figures": figures })
    }
}

/// Four digits are as much as such measurements give.
fn rounded(value: f64) -> String {
    match value.abs() {
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

/// Says why there is no report.
pub(crate) fn complain(error: &anyhow::Error) {
    drop(writeln!(std::io::stderr(), "sg-bench: {error:#}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_quantiles_of_a_few() {
        assert_eq!(rounded(median(&[3.0, 1.0, 2.0])), "2.000");
        assert_eq!(rounded(median(&[4.0, 1.0, 2.0, 3.0])), "2.500");
        assert_eq!(rounded(median(&[])), "0.00000");
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(rounded(quantile(&hundred, 0.99)), "99.000");
    }
}
