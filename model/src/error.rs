//! Why a value was refused. One type for all constructors: it names the field, shows the value and
//! says what would be accepted, so that an API can answer per field and a person can act on it.

use std::fmt;

/// A field whose value cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// The field's name as in the API, such as `resource_port`.
    pub field: &'static str,
    /// What is wrong and what would be right, in one sentence without a full stop.
    pub message: String,
}

impl Invalid {
    /// Refuses `field` with a sentence that says what would be accepted.
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }

    /// The same refusal for another field, where one type is used for several.
    #[must_use]
    pub fn in_field(mut self, field: &'static str) -> Self {
        self.field = field;
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}
