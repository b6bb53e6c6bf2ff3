//! What a change changes, field by field, from stored values and their descriptors. New kinds of
//! objects and new fields need nothing here.
//!
//! No secret gets through: values of type bytes never do, nor fields that are marked `debug_redact`
//! or called like secrets, nor text that holds a private key.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value,
};
use sg_proto::store as wire;

/// In place of a secret.
const REDACTED: &str = "<redacted>";
/// Longest text of a value, in characters.
const MAX_TEXT: usize = 256;
/// All texts of one record together, in bytes.
pub const MAX_RECORD: usize = 16 * 1024;
/// Words in the names of fields that hold secrets.
const SECRET_WORDS: [&str; 6] = [
    "secret",
    "password",
    "private",
    "sealed",
    "credential",
    "passphrase",
];
/// Says only that there was a change, which the record says anyway.
const NOISE: &str = "update_time";

static STORED: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(sg_proto::DESCRIPTORS).ok());

/// What became of an object of type `kind` (as `Gateway`), whose texts together take at most `room`
/// bytes. Values that cannot be read count as absent.
#[must_use]
pub fn change(
    object: &str,
    kind: &str,
    before: Option<&[u8]>,
    after: Option<&[u8]>,
    room: &mut usize,
) -> wire::AuditChange {
    let mut change = wire::AuditChange {
        object: object.to_owned(),
        ..wire::AuditChange::default()
    };
    let name = format!("securegateway.store.v1.{kind}");
    let Some(descriptor) = STORED
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(&name))
    else {
        return change;
    };
    let decode = |bytes: Option<&[u8]>| {
        bytes
            .and_then(|bytes| DynamicMessage::decode(descriptor.clone(), bytes).ok())
            .unwrap_or_else(|| DynamicMessage::new(descriptor.clone()))
    };
    let (before, after) = (decode(before), decode(after));
    for field in descriptor.fields().filter(|field| field.name() != NOISE) {
        let old = before.has_field(&field).then(|| before.get_field(&field));
        let new = after.has_field(&field).then(|| after.get_field(&field));
        if old == new {
            continue;
        }
        let (old, new) = texts(&field, old.as_deref(), new.as_deref());
        let size = field.name().len() + old.len() + new.len();
        let Some(left) = room.checked_sub(size) else {
            change.truncated = true;
            break;
        };
        *room = left;
        change.fields.push(wire::AuditField {
            name: field.name().to_owned(),
            before: old,
            after: new,
        });
    }
    change
}

/// Both values as texts; of lists only what differs.
fn texts(field: &FieldDescriptor, old: Option<&Value>, new: Option<&Value>) -> (String, String) {
    let text = |value: Option<&Value>| value.map(|value| shown(field, value)).unwrap_or_default();
    let (Some(Value::List(old_list)), Some(Value::List(new_list))) = (old, new) else {
        return (text(old), text(new));
    };
    let (old_texts, new_texts) = (each(old_list), each(new_list));
    let gone = without(old_list, &old_texts, &new_texts);
    let come = without(new_list, &new_texts, &old_texts);
    if gone.is_empty() && come.is_empty() {
        return (String::new(), "the same in another order".to_owned());
    }
    let list = |values: Vec<Value>| match values.is_empty() {
        true => String::new(),
        false => shown(field, &Value::List(values)),
    };
    (list(gone), list(come))
}

fn each(values: &[Value]) -> Vec<String> {
    values.iter().map(plain).collect()
}

/// Those of `values` whose texts are not among the others', counting repetitions. Lists may be long.
fn without(values: &[Value], texts: &[String], others: &[String]) -> Vec<Value> {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for text in others {
        *left.entry(text).or_default() += 1;
    }
    let mut only = Vec::new();
    for (value, text) in values.iter().zip(texts) {
        match left.get_mut(text.as_str()) {
            Some(count) if *count > 0 => *count -= 1,
            _ => only.push(value.clone()),
        }
    }
    only
}

fn shown(field: &FieldDescriptor, value: &Value) -> String {
    if is_secret(field) {
        return REDACTED.to_owned();
    }
    let text = plain(value);
    if text.contains("PRIVATE KEY") {
        return REDACTED.to_owned();
    }
    match text.char_indices().nth(MAX_TEXT) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let marked = field
        .options()
        .get_field_by_name("debug_redact")
        .is_some_and(|value| value.as_bool() == Some(true));
    marked
        || field.kind() == Kind::Bytes
        || SECRET_WORDS.iter().any(|word| field.name().contains(word))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::EnumNumber(value) => value.to_string(),
        Value::Bytes(_) | Value::Map(_) => REDACTED.to_owned(),
        Value::List(values) => {
            let texts: Vec<_> = values.iter().map(plain).collect();
            texts.join(", ")
        }
        Value::Message(message) => nested(message),
    }
}

fn nested(message: &DynamicMessage) -> String {
    match message.descriptor().full_name() {
        "google.protobuf.Duration" => format!("{}s", decimal(message)),
        "google.protobuf.Timestamp" => decimal(message),
        _ => {
            let fields: Vec<_> = message
                .fields()
                .map(|(field, value)| match is_secret(&field) {
                    true => format!("{}={REDACTED}", field.name()),
                    false => format!("{}={}", field.name(), plain(value)),
                })
                .collect();
            format!("{{{}}}", fields.join(" "))
        }
    }
}

/// Seconds with as many decimals as there are.
fn decimal(message: &DynamicMessage) -> String {
    let number = |name| {
        let value = message.get_field_by_name(name);
        value.and_then(|value| value.as_i64().or_else(|| value.as_i32().map(i64::from)))
    };
    let (seconds, nanos) = (number("seconds").unwrap_or(0), number("nanos").unwrap_or(0));
    let text = format!("{seconds}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn gateway() -> wire::Gateway {
        wire::Gateway {
            id: "G1".to_owned(),
            name: "dev".to_owned(),
            token_sha256: vec![7; 32],
            resume_time: Some(pbjson_types::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            ..wire::Gateway::default()
        }
    }

    fn fields(change: &wire::AuditChange) -> Vec<(&str, &str, &str)> {
        let rows = change.fields.iter();
        rows.map(|f| (f.name.as_str(), f.before.as_str(), f.after.as_str()))
            .collect()
    }

    #[test]
    fn only_what_differs_is_told_and_no_secret() {
        let old = gateway();
        let new = wire::Gateway {
            name: "plant".to_owned(),
            token_sha256: vec![8; 32],
            resume_time: None,
            enabled: true,
            update_time: Some(pbjson_types::Timestamp::default()),
            ..gateway()
        };
        let mut room = MAX_RECORD;
        let (old, new) = (old.encode_to_vec(), new.encode_to_vec());
        let told = change("gateway/G1", "Gateway", Some(&old), Some(&new), &mut room);
        assert_eq!(
            fields(&told),
            [
                ("name", "dev", "plant"),
                ("enabled", "", "true"),
                ("token_sha256", REDACTED, REDACTED),
                ("resume_time", "1.5s", ""),
            ]
        );
        let gone = change("gateway/G1", "Gateway", Some(&old), None, &mut room);
        assert!(fields(&gone).contains(&("name", "dev", "")));
    }

    #[test]
    fn of_lists_only_the_difference_is_told() {
        let entry = |host: &str| wire::AclEntry {
            action: "allow".to_owned(),
            host: host.to_owned(),
            port: 80,
            ..wire::AclEntry::default()
        };
        let acl = |hosts: &[&str]| {
            wire::Acl {
                entries: hosts.iter().map(|host| entry(host)).collect(),
                ..wire::Acl::default()
            }
            .encode_to_vec()
        };
        let mut room = MAX_RECORD;
        let told = change(
            "acl/G1",
            "Acl",
            Some(&acl(&["a", "b"])),
            Some(&acl(&["b", "c"])),
            &mut room,
        );
        assert_eq!(
            fields(&told),
            [(
                "entries",
                "{action=allow host=a port=80}",
                "{action=allow host=c port=80}"
            )]
        );
        let told = change(
            "acl/G1",
            "Acl",
            Some(&acl(&["a", "b"])),
            Some(&acl(&["b", "a"])),
            &mut room,
        );
        assert_eq!(
            fields(&told),
            [("entries", "", "the same in another order")]
        );
    }

    #[test]
    fn a_record_stays_small() {
        let new = wire::Gateway {
            description: "x".repeat(10_000),
            ..gateway()
        };
        let mut room = MAX_RECORD;
        let told = change("g", "Gateway", None, Some(&new.encode_to_vec()), &mut room);
        assert!(told.fields.iter().all(|field| field.after.len() < 300));
        room = 10;
        let told = change("g", "Gateway", None, Some(&new.encode_to_vec()), &mut room);
        assert!(told.truncated && told.fields.len() < 3);
    }
}
