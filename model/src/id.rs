//! Names and identifiers. Every role has its own type, so that a gateway's id never stands where a
//! destination's belongs.
//!
//! Ids are made elsewhere (they need randomness); here they are only parsed: 1 to 64 of
//! `A-Z a-z 0-9 _ -`. They go into many places for every stream, so a clone shares the text.

use std::fmt;
use std::sync::Arc;

use crate::Invalid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses an id.
            ///
            /// # Errors
            /// When it is empty, longer than 64 characters, or has a character other than `A-Z a-z 0-9 _ -`.
            pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
                let text = text.into();
                let good = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if good {
                    Ok(Self(text.into()))
                } else {
                    Err(Invalid::new($field, "must be 1 to 64 letters, digits, '_' or '-'"))
                }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Identifies a gateway for ever; never reused.
    GatewayId,
    "gateway_id"
);
id!(
    /// Identifies a destination for ever; never reused.
    DestinationId,
    "destination_id"
);
id!(
    /// Identifies a data-plane node; in its certificate.
    NodeId,
    "node_id"
);
id!(
    /// Identifies a client by the hash of its key.
    ClientId,
    "client_id"
);

/// A name chosen by a person: 1 to 63 of `a-z 0-9 -`, starting and ending with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Parses a name.
    ///
    /// # Errors
    /// When it breaks the rule above.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = (1..=63).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good {
            Ok(Self(text))
        } else {
            Err(Invalid::new(
                "name",
                "must be 1 to 63 lower-case letters, digits or '-', starting and ending with a letter or digit",
            ))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "dev", "plant-1", "0", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Dev", "a_b", "a.b", "ä", &"x".repeat(64)] {
            assert_eq!(Name::new(bad).map_err(|e| e.field), Err("name"), "{bad}");
        }
    }

    #[test]
    fn ids_are_printable_and_bounded() {
        assert!(GatewayId::new("g0123").is_ok());
        assert!(GatewayId::new("").is_err());
        assert!(GatewayId::new("a/b").is_err());
        assert!(DestinationId::new("x".repeat(65)).is_err());
    }
}
