//! How resources are printed: `-o table|wide|json|yaml|name`, on stdout and nowhere else.
//!
//! JSON and YAML are the proto3 JSON of the API's messages; tables are for people and may change.
//! Everything that is not data (progress, remarks) goes to stderr through [`note`].

use std::io::{self, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde::ser::SerializeMap as _;

use crate::canonical::canonical;
use crate::failure::Failure;

/// Form of what a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// The API resource as JSON
    Json,
    /// The same as YAML
    Yaml,
    /// Only names, one per line, as other commands take them
    Name,
}

/// Something the API knows, as it is shown.
pub(crate) trait Resource: Serialize {
    /// Key of a list of these in JSON.
    const PLURAL: &'static str;
    /// Headings of a table.
    const COLUMNS: &'static [&'static str];
    /// Further headings with `-o wide`.
    const WIDE: &'static [&'static str] = &[];

    /// What other commands take to name it.
    fn reference(&self) -> String;
    /// One cell for each heading, the wide ones included.
    fn cells(&self) -> Vec<String>;
    /// What `get` shows below the row.
    fn details(&self) -> Option<String> {
        None
    }
}

/// Prints one resource; with `details`, tables show what belongs to it as well.
pub(crate) fn one<R: Resource>(format: Format, resource: &R, details: bool) -> Result<(), Failure> {
    match format {
        Format::Json => json(resource),
        Format::Yaml => yaml(resource),
        Format::Name => print(&format!("{}\n", resource.reference())),
        Format::Table | Format::Wide => {
            let mut text = resource_table(format, std::slice::from_ref(resource));
            if let Some(more) = resource.details().filter(|_| details) {
                text.push('\n');
                text.push_str(&more);
            }
            print(&text)
        }
    }
}

/// Prints a list; an empty table says so on stderr.
pub(crate) fn list<R: Resource>(format: Format, resources: &[R]) -> Result<(), Failure> {
    match format {
        Format::Json => json(&Listed(resources)),
        Format::Yaml => yaml(&Listed(resources)),
        Format::Name => {
            let names: String = resources
                .iter()
                .map(|r| format!("{}\n", r.reference()))
                .collect();
            print(&names)
        }
        Format::Table | Format::Wide if resources.is_empty() => {
            note(&format!("no {}", words(R::PLURAL)));
            Ok(())
        }
        Format::Table | Format::Wide => print(&resource_table(format, resources)),
    }
}

/// `auditRecords` as people write it.
fn words(key: &str) -> String {
    let spaced = key.chars().flat_map(|c| {
        let blank = c.is_ascii_uppercase().then_some(' ');
        blank.into_iter().chain([c.to_ascii_lowercase()])
    });
    spaced.collect()
}

/// Prints one resource of a sequence that has no end: on one line, wherever the form allows it.
pub(crate) fn line<R: Resource>(format: Format, resource: &R) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let mut text = canonical(resource)
                .and_then(|value| serde_json::to_string(&value))
                .map_err(|error| Failure::local("cannot write this as JSON", &error))?;
            text.push('\n');
            print(&text)
        }
        Format::Yaml => {
            print("---\n")?;
            yaml(resource)
        }
        Format::Name => print(&format!("{}\n", resource.reference())),
        Format::Table | Format::Wide => {
            let wide = if format == Format::Wide { R::WIDE } else { &[] };
            let mut cells = resource.cells();
            cells.truncate(R::COLUMNS.len() + wide.len());
            print(&format!("{}\n", cells.join("  ")))
        }
    }
}

/// Prints a value that is no resource: as JSON or YAML, or as this text.
pub(crate) fn value(format: Format, value: &impl Serialize, text: &str) -> Result<(), Failure> {
    match format {
        Format::Json => json(value),
        Format::Yaml => yaml(value),
        Format::Table | Format::Wide | Format::Name => print(text),
    }
}

/// Columns without lines between them; no blanks at the ends of lines.
pub(crate) fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.to_vec());
    for row in rows {
        table.add_row(row.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Writes to stdout. Whoever closed the other end of the pipe has what they wanted.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local("cannot write to stdout", &error))
        }
        _ => Ok(()),
    }
}

/// A remark for the person at the terminal, on stderr. If nobody can read it, so be it.
pub(crate) fn note(text: &str) {
    let written = writeln!(io::stderr().lock(), "{}", text.trim_end());
    drop(written);
}

fn resource_table<R: Resource>(format: Format, resources: &[R]) -> String {
    let wide = if format == Format::Wide { R::WIDE } else { &[] };
    let columns = [R::COLUMNS, wide].concat();
    let rows = resources.iter().map(|resource| {
        let mut cells = resource.cells();
        cells.truncate(columns.len());
        cells
    });
    table(&columns, rows)
}

fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = canonical(value)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .map_err(|error| Failure::local("cannot write this as JSON", &error))?;
    text.push('\n');
    print(&text)
}

fn yaml(value: &impl Serialize) -> Result<(), Failure> {
    let value =
        canonical(value).map_err(|error| Failure::local("cannot write this as YAML", &error))?;
    let text = serde_saphyr::to_string(&value)
        .map_err(|error| Failure::local("cannot write this as YAML", &error))?;
    print(&text)
}

/// `{"gateways": [...]}`.
struct Listed<'a, R>(&'a [R]);

impl<R: Resource> Serialize for Listed<'_, R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(R::PLURAL, self.0)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_words() {
        assert_eq!(words("auditRecords"), "audit records");
        assert_eq!(words("nodes"), "nodes");
    }

    #[test]
    fn tables_are_aligned_and_have_no_trailing_blanks() {
        let text = table(
            &["NAME", "ID"],
            [
                vec!["a".into(), "1".into()],
                vec!["long-name".into(), String::new()],
            ],
        );
        assert_eq!(text, "NAME       ID\na          1\nlong-name  -\n");
    }
}
