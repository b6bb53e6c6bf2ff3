//! The TOML file: a flat table whose keys are flag names.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::error::{ConfigError, Invalid};

/// Values by key; keys in kebab-case, values as texts that a flag would take.
pub(super) type Values = BTreeMap<String, Vec<String>>;

/// Reads the file. Whether the keys exist is decided by whoever knows the flags.
pub(super) fn read(path: &Path) -> Result<Values, ConfigError> {
    let at = || path.to_owned();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: at(), source })?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: at(),
            message: error.to_string(),
        })?;
    let mut values = Values::new();
    for (key, value) in table {
        let place = format!("key `{key}` in {}", path.display());
        let texts = texts(&value).ok_or_else(|| {
            let remedy = "write a string, a number, true or false, or an array of those";
            Invalid::new(
                &place,
                &value,
                format!("a {} is not possible here", value.type_str()),
                remedy,
            )
        })?;
        if values.insert(key.replace('_', "-"), texts).is_some() {
            let remedy = "remove one of the spellings with - and with _";
            return Err(Invalid::new(place, &value, "the key is there twice", remedy).into());
        }
    }
    Ok(values)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        single => text(single).map(|text| vec![text]),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}
