//! Points of time in the canonical form of proto3 JSON, `…Z`: the mapping that is generated for the
//! messages writes `…+00:00`. The order of fields stays. It knows a point of time by the name of
//! its field, which in this API ends in `Time` and does so for nothing else.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// A JSON value whose objects keep their order.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub(crate) enum Value {
    Null(()),
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Self>),
    Object(Fields),
}

#[derive(Debug)]
pub(crate) struct Fields(Vec<(String, Value)>);

/// The value as JSON and YAML show it.
pub(crate) fn canonical(value: &impl Serialize) -> serde_json::Result<Value> {
    serde_json::from_str(&serde_json::to_string(value)?)
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, mut value)) = map.next_entry::<String, Value>()? {
                    if let Value::Text(text) = &mut value
                        && name.ends_with("Time")
                        && let Some(utc) = text.strip_suffix("+00:00")
                    {
                        *text = format!("{utc}Z");
                    }
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use pbjson_types::Timestamp;
    use sg_proto::api::Gateway;

    use super::*;

    #[test]
    fn points_of_time_end_in_z_and_nothing_else_changes() {
        let gateway = Gateway {
            name: "dev".into(),
            description: "since 2026-11-23T17:01:08+00:00".into(),
            enabled: true,
            generation: u64::MAX,
            create_time: Some(Timestamp {
                seconds: 1_764_000_000,
                nanos: 868_000_000,
            }),
            ..Gateway::default()
        };
        let plain = serde_json::to_string(&gateway).expect("JSON");
        let shown = serde_json::to_string(&canonical(&gateway).expect("a value")).expect("JSON");
        assert!(
            plain.contains(r#""createTime":"2025-11-24T16:00:00.868+00:00""#),
            "{plain}"
        );
        assert_eq!(shown, plain.replace(".868+00:00", ".868Z"));
    }

    #[test]
    fn every_kind_of_value_passes() {
        let text = r#"{"b":[null,true,-1,18446744073709551615,1.25,"x",{}],"a":{"Time":7}}"#;
        let value: Value = serde_json::from_str(text).expect("a value");
        assert_eq!(serde_json::to_string(&value).expect("JSON"), text);
    }
}
