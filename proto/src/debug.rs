//! `Debug` of the messages that carry secrets. It is generated (`build/redacted.rs`); here is what it is made of, and the
//! test that no message shows one.

use std::fmt;

#[allow(unused_qualifications)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
}

/// What stands for a secret.
pub(crate) fn hidden(is_empty: bool) -> impl fmt::Debug {
    struct Hidden(&'static str);
    impl fmt::Debug for Hidden {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }
    Hidden(if is_empty { "[none]" } else { "[secret]" })
}

/// Stands for long bytes beside a secret, such as certificates: their lengths.
pub(crate) struct Lengths(pub(crate) Vec<usize>);

impl fmt::Debug for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.0.iter().map(|length| format!("{length} bytes"));
        f.debug_list().entries(each).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;
    use prost_reflect::{
        DescriptorPool, DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value,
    };

    type Shown = fn(&[u8]) -> Result<String, prost::DecodeError>;

    /// Every message: its name, and its `Debug` from its bytes.
    #[allow(unused_qualifications)]
    const ALL: &[(&str, Shown)] = include!(concat!(env!("OUT_DIR"), "/debug_table.rs"));

    const CANARY: &str = "canary";
    /// The same as a derived `Debug` shows bytes.
    const CANARY_AS_NUMBERS: &str = "99, 97, 110, 97, 114, 121";
    /// Messages in messages that are filled.
    const DEPTH: usize = 6;

    /// Whether a field is a secret by its name, told in another way than the generator does.
    fn says_secret(field: &FieldDescriptor) -> bool {
        let name = field.name();
        let said = ["token", "key", "secret", "password", "proof"];
        said.iter().any(|word| name.contains(word))
            && ![
                "page_token",
                "next_page_token",
                "token_expiry",
                "public_key_der",
            ]
            .contains(&name)
            || [
                "securegateway.v1.CertificateFile.content",
                "securegateway.tunnel.v1.Piece.data",
            ]
            .contains(&field.full_name())
            || field.full_name() == "securegateway.node.v1.TokenHash.sha256"
    }

    /// A message in which every secret is the canary, also of the messages inside; how many there are.
    fn filled(mut message: DynamicMessage, depth: usize) -> (DynamicMessage, usize) {
        let mut count = 0;
        for field in message.descriptor().fields().collect::<Vec<_>>() {
            let value = match field.kind() {
                Kind::String if says_secret(&field) => Value::String(CANARY.to_owned()),
                Kind::Bytes if says_secret(&field) => Value::Bytes(CANARY.into()),
                Kind::Message(inner) if depth > 0 => {
                    let (inner, inside) = filled(DynamicMessage::new(inner), depth - 1);
                    count += inside;
                    if inside == 0 {
                        continue;
                    }
                    Value::Message(inner)
                }
                _ => continue,
            };
            count += usize::from(says_secret(&field));
            let value = match field.is_list() {
                true => Value::List(vec![value]),
                false => value,
            };
            message.set_field(&field, value);
        }
        (message, count)
    }

    #[test]
    fn threat_28_no_message_shows_a_secret() {
        let pool = DescriptorPool::decode(crate::DESCRIPTORS).unwrap();
        let mut secrets = 0;
        let ours = pool
            .all_messages()
            .filter(|message| message.full_name().starts_with("securegateway."));
        for descriptor in ours {
            let name = descriptor.full_name().to_owned();
            let (_, shown) = ALL
                .iter()
                .find(|(known, _)| *known == name)
                .unwrap_or_else(|| panic!("{name} is in the table"));
            let (message, count) = filled(DynamicMessage::new(descriptor), DEPTH);
            let text = shown(&message.encode_to_vec()).unwrap();
            let leaks = text.contains(CANARY) || text.contains(CANARY_AS_NUMBERS);
            assert!(!leaks, "{name} shows a secret: {text}");
            assert!(
                count == 0 || text.contains("[secret]"),
                "{name} does not say that there is one: {text}"
            );
            secrets += count;
        }
        assert!(secrets > 40, "only {secrets} secrets were tried");
    }

    #[test]
    fn the_search_for_secrets_would_find_one() {
        // A field that is no secret is shown, as text and as bytes.
        let rule = crate::api::SourceRule {
            spec: CANARY.to_owned(),
            ..crate::api::SourceRule::default()
        };
        assert!(format!("{rule:?}").contains(CANARY));
        let end = crate::api::UserEnd {
            certificates: vec![CANARY.into()],
            ..crate::api::UserEnd::default()
        };
        assert!(format!("{end:?}").contains(CANARY_AS_NUMBERS));
    }
}
